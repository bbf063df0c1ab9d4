//! `tombolo views list --follow`: builds that are under way, until none is.
//!
//! Invariant: in a terminal one line for each build is drawn again and again; elsewhere, and as JSON, a line is added each second.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::interval;

use super::{Build, Said, ask_all, time_to_go};
use crate::arguments::OfBus;
use crate::commands::say;
use crate::error::{Context, Result};
use crate::output::Format;
use crate::runner::client;

/// How often a terminal is drawn, and how often a line is printed elsewhere.
const DRAW: Duration = Duration::from_millis(250);
const PRINT: Duration = Duration::from_secs(1);

/// Follows until no build is under way.
pub(super) async fn follow(of: &OfBus) -> Result<()> {
    let client = client()?;
    let is_drawn = of.format == Format::Table && std::io::stderr().is_terminal();
    let mut looks = interval(if is_drawn { DRAW } else { PRINT });
    let mut bars = Bars::new()?;
    loop {
        looks.tick().await;
        let answers = ask_all(&client, &of.reached).await?;
        let mut said = answers.said.iter().map(|(_, said)| said);
        match (of.format, is_drawn) {
            (Format::Json, _) => say(&answers.json()?.to_string())?,
            (Format::Table, true) => said.for_each(|said| bars.draw(said)),
            (Format::Table, false) => said.try_for_each(print)?,
        }
        if !answers.views().flat_map(|(_, _, view)| &view.builds).any(Build::is_under_way) {
            return if is_drawn { bars.end() } else { Ok(()) };
        }
    }
}

fn print(said: &Said) -> Result<()> {
    for view in &said.views {
        for build in view.builds.iter().filter(|build| build.is_under_way()) {
            let Build { build: id, events_done, events_total, .. } = build;
            let (service, view) = (&said.service, &view.view);
            say(&format!(
                "{service} {view} {id}: {events_done} of {events_total} events, {} to go",
                time_to_go(build)
            ))?;
        }
    }
    Ok(())
}

/// A line for each build that is, or was, under way.
struct Bars {
    all: MultiProgress,
    style: ProgressStyle,
    lines: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn new() -> Result<Self> {
        let template = "{prefix} {bar:30} {percent:>3}%  {pos} of {len} events  {msg}";
        let style = ProgressStyle::with_template(template).context(|| "cannot draw".into())?;
        Ok(Self { all: MultiProgress::new(), style: style.progress_chars("█▌ "), lines: BTreeMap::new() })
    }

    /// Leaves what was drawn as it is.
    fn end(self) -> Result<()> {
        self.lines.values().for_each(ProgressBar::abandon);
        if self.lines.is_empty() { say("nothing is being built") } else { Ok(()) }
    }

    fn draw(&mut self, said: &Said) {
        for view in &said.views {
            for build in &view.builds {
                let name = format!("{} {} {}", said.service, view.view, build.build);
                if build.is_under_way() && !self.lines.contains_key(&name) {
                    let line = ProgressBar::new(0).with_style(self.style.clone()).with_prefix(name.clone());
                    self.lines.insert(name.clone(), self.all.add(line));
                }
                let Some(line) = self.lines.get(&name) else { continue };
                line.set_length(build.events_total);
                line.set_position(build.events_done);
                let rate = build.events_per_second.unwrap_or_default();
                line.set_message(match build.is_under_way() {
                    true => format!("{rate:.0} events/s, {} to go", time_to_go(build)),
                    false => build.stage.clone(),
                });
            }
        }
    }
}
