//! `tombolo subscriptions pause|resume|reset|skip`: what an operator does to a subscription.
//!
//! Invariant: a cursor is only ever moved to where a preview said, and only after `--yes`.

use serde_json::json;
use tombolo_event::operator::{Action, Goal, Move, Plan, Preview};

use super::asking::Target;
use crate::arguments::{Asked, Reset, Skip};
use crate::commands::say;
use crate::error::{Context, Error, Result};
use crate::output::Format;

/// `tombolo subscriptions pause` and `resume`.
pub(crate) async fn order(asked: Asked, action: Action) -> Result<()> {
    Target::find(&asked).await?.carry_out(&asked.how, action).await
}

/// `tombolo subscriptions reset`.
pub(crate) async fn reset(arguments: Reset) -> Result<()> {
    let target = Target::find(&arguments.asked).await?;
    let mut goals = Vec::new();
    goals.extend(arguments.to_start.then_some(Goal::Start));
    goals.extend(arguments.to_time.map(|time| Goal::Time { time }));
    let sequences = arguments.to_sequence.into_iter();
    goals.extend(sequences.map(|(of, sequence)| Goal::Sequence { of, sequence }));
    let (mut moves, mut preview) = (Vec::new(), None);
    for to in goals {
        let found = plan(&target, to).await?;
        moves.extend(found.moves.clone());
        preview = Some(found);
    }
    let Some(preview) = preview else {
        return Err(Error::usage("say where to: --to-start, --to-time or --to-sequence"));
    };
    let preview = Preview { moves, ..preview };
    tell(&arguments.asked, &preview, "again")?;
    if !arguments.yes {
        return Err(not_yet(preview.needs_force));
    }
    if preview.needs_force && !arguments.force {
        return Err(Error::failed(
            "nothing was moved: that is refused without --force, for the reason above",
        ));
    }
    let to = preview.moves.into_iter().map(|to| to.to).collect();
    target.carry_out(&arguments.asked.how, Action::Reset { to, force: arguments.force }).await
}

/// `tombolo subscriptions skip`.
pub(crate) async fn skip(arguments: Skip) -> Result<()> {
    let target = Target::find(&arguments.asked).await?;
    let to = Goal::Over { of: arguments.of, sequence: arguments.to };
    let preview = plan(&target, to).await?;
    tell(&arguments.asked, &preview, "never")?;
    if !arguments.yes {
        return Err(not_yet(false));
    }
    for to in preview.moves {
        target.carry_out(&arguments.asked.how, Action::Skip { to: to.to }).await?;
    }
    Ok(())
}

async fn plan(target: &Target, to: Goal) -> Result<Preview> {
    let plan = Plan { subscription: target.subscription.clone(), to };
    let found = target.post("/tombolo/requests/preview", &plan).await?;
    serde_json::from_value(found).context(|| "the service's answer cannot be read".into())
}

fn tell(asked: &Asked, preview: &Preview, how: &str) -> Result<()> {
    if asked.how.format == Format::Json {
        return say(&json!({ "preview": preview }).to_string());
    }
    for to in &preview.moves {
        say(&line(to, how))?;
        for over in &to.over {
            say(&format!("    {over}"))?;
        }
    }
    match &preview.warning {
        Some(warning) => say(&format!("note: {warning}")),
        None => Ok(()),
    }
}

fn line(to: &Move, how: &str) -> String {
    let of = &to.to.of;
    let events = if to.events == 1 { "1 event".to_owned() } else { format!("{} events", to.events) };
    let since = to.since.map_or_else(String::new, |since| format!(", the first of {since}"));
    format!(
        "{}/{} from {} to {}: {events} would be handled {how}{since}",
        of.topic, of.partition, to.from, to.to.sequence
    )
}

fn not_yet(needs_force: bool) -> Error {
    let force = if needs_force { " and --force" } else { "" };
    Error::usage(format!("nothing was moved: look at the above, then say --yes{force}"))
}
