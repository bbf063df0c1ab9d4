//! `tombolo views`: the builds of each view, as the services themselves say; a build beside the live one, comparing,
//! switching and dropping.
//!
//! Invariant: this tool only asks. The service's own replicas do it, and what became of it is kept beside what was asked.

mod compared;
mod progress;

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Client;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo_event::operator::{Action, of_view};

use crate::arguments::{Compared, OfBus, OfView, Reached, SwitchView, Views};
use crate::commands::asking::Target;
use crate::commands::subscriptions::{Replica, replicas};
use crate::commands::{say, show};
use crate::error::{Context, Error, Result};
use crate::output::Format;
use crate::runner::client;

/// How long a service may take to say where its views are.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// How long comparing may take: it reads both builds wholly.
const COMPARE_BOUND: Duration = Duration::from_secs(1_800);

/// As much of a service's answer as is shown.
#[derive(Debug, Deserialize, Serialize)]
struct Said {
    service: String,
    views: Vec<View>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct View {
    view: String,
    live: String,
    epoch: u64,
    rebuildable: bool,
    builds: Vec<Build>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct Build {
    build: String,
    stage: String,
    subscription: String,
    kept: bool,
    switches: bool,
    behind_live: Option<u64>,
    parked_keys: u64,
    events_done: u64,
    events_total: u64,
    events_per_second: Option<f64>,
    seconds_to_go: Option<f64>,
    made_at: String,
}

impl Build {
    /// Whether it goes on by itself to something that is worth waiting for.
    fn is_under_way(&self) -> bool {
        self.kept && (self.stage == "building" || self.switches)
    }
}

/// Carries out one of the commands.
pub(crate) async fn views(command: Views) -> Result<()> {
    match command {
        Views::List(list) if list.follow => progress::follow(&list.of).await,
        Views::List(list) => self::list(&list.of).await,
        Views::Rebuild(rebuild) => order(&rebuild.view, Action::Rebuild { switch: rebuild.switch }).await,
        Views::Switch(switch) => self::switch(&switch).await,
        Views::Drop(drop) => order(&drop.view, Action::Drop { build: drop.build.clone() }).await,
        Views::Compare(compared) => compare(&compared).await,
    }
}

async fn list(of: &OfBus) -> Result<()> {
    let answers = ask_all(&client()?, &of.reached).await?;
    let header = [
        "SERVICE",
        "VIEW",
        "BUILD",
        "STAGE",
        "DONE",
        "TOTAL",
        "EVENTS/S",
        "TO GO",
        "BEHIND LIVE",
        "PARKED",
        "DETAIL",
    ];
    let rows = answers.said.iter().flat_map(|(_, said)| rows(said));
    let rows = rows.chain(answers.silent.iter().map(unknown)).collect();
    show(of.format, header, rows, &answers.json()?)
}

/// What the services said of their views.
#[derive(Default)]
struct Answers {
    /// Of each service one answer, and where it came from: any of its replicas knows.
    said: Vec<(String, Said)>,
    /// The services of which no replica could tell, with the reason.
    silent: BTreeMap<String, String>,
}

impl Answers {
    /// All of it, as one object.
    fn json(&self) -> Result<Value> {
        let said: Vec<&Said> = self.said.iter().map(|(_, said)| said).collect();
        let mut services = serde_json::to_value(said).context(|| "cannot write the answers".into())?;
        if let Some(services) = services.as_array_mut() {
            let silent = |(service, why)| json!({ "service": service, "error": why });
            services.extend(self.silent.iter().map(silent));
        }
        Ok(json!({ "services": services }))
    }

    /// Every view, with its service and where that is.
    fn views(&self) -> impl Iterator<Item = (&str, &Said, &View)> {
        self.said.iter().flat_map(|(url, said)| said.views.iter().map(move |view| (url.as_str(), said, view)))
    }
}

/// Asks each service, one replica after the other until one tells.
async fn ask_all(client: &Client, reached: &Reached) -> Result<Answers> {
    let mut answers = Answers::default();
    for Replica { service, url, .. } in replicas(reached).await? {
        if answers.said.iter().any(|(_, said)| said.service == service) {
            continue;
        }
        let target = Target::of(client.clone(), &url, String::new());
        let answer = target.get_within("/tombolo/views", &[], ANSWER_BOUND).await;
        let said = answer.and_then(|answer| {
            Said::deserialize(&answer).context(|| "the service's answer cannot be read".into())
        });
        match said {
            Ok(said) => {
                answers.silent.remove(&service);
                answers.said.push((url, said));
            }
            Err(error) => {
                answers.silent.insert(service, error.message);
            }
        }
    }
    Ok(answers)
}

fn unknown((service, why): (&String, &String)) -> [String; 11] {
    let mut row = std::array::from_fn(|_| "-".to_owned());
    (row[0], row[3], row[10]) = (service.clone(), "unknown".to_owned(), why.clone());
    row
}

fn rows(said: &Said) -> Vec<[String; 11]> {
    let of_view = |view: &View| {
        let row = |build: &Build| {
            [
                said.service.clone(),
                view.view.clone(),
                build.build.clone(),
                build.stage.clone(),
                build.events_done.to_string(),
                build.events_total.to_string(),
                build.events_per_second.map_or_else(|| "-".into(), |rate| format!("{rate:.0}")),
                time_to_go(build),
                build.behind_live.map_or_else(|| "-".into(), |events| events.to_string()),
                build.parked_keys.to_string(),
                detail(view, build),
            ]
        };
        view.builds.iter().map(row).collect::<Vec<_>>()
    };
    said.views.iter().flat_map(of_view).collect()
}

fn detail(view: &View, build: &Build) -> String {
    let notes = [
        (!build.kept, "not kept: the program does not have this version"),
        (!view.rebuildable && build.stage == "live", "its tables are not its own: no build beside it"),
        (build.switches, "readers are switched to it when it is ready"),
    ];
    let notes: Vec<&str> = notes.into_iter().filter_map(|(holds, note)| holds.then_some(note)).collect();
    if notes.is_empty() { "-".into() } else { notes.join("; ") }
}

fn time_to_go(build: &Build) -> String {
    let Some(seconds) = build.seconds_to_go else { return "-".into() };
    let seconds = seconds.ceil() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// The one service that has the view, and what it says.
async fn find(named: &OfView) -> Result<(Target, View)> {
    let (service, name) = match named.view.split_once('/') {
        Some((service, name)) => (Some(service), name),
        None => (None, named.view.as_str()),
    };
    let client = client()?;
    let answers = ask_all(&client, &named.how.reached).await?;
    let is_meant = |(_, said, view): &(&str, &Said, &View)| {
        view.view == name && service.is_none_or(|service| service == said.service)
    };
    let found: Vec<_> = answers.views().filter(is_meant).collect();
    match found[..] {
        [(url, _, view)] => Ok((Target::of(client, url, of_view(name)), view.clone())),
        [] => Err(missing(&named.view, &answers)),
        _ => Err(Error::usage(format!("several services have it; say which: {}", names(found.into_iter())))),
    }
}

fn names<'a>(views: impl Iterator<Item = (&'a str, &'a Said, &'a View)>) -> String {
    let names: Vec<_> = views.map(|(_, said, view)| format!("{}/{}", said.service, view.view)).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn missing(named: &str, answers: &Answers) -> Error {
    let silent: Vec<_> = answers.silent.iter().map(|(service, why)| format!("{service} ({why})")).collect();
    let silent =
        if silent.is_empty() { String::new() } else { format!("; no answer from {}", silent.join(", ")) };
    Error::not_found(format!(
        "no service that runs has view {named:?}; there are: {}{silent}",
        names(answers.views())
    ))
}

/// Asks for something, and prints what became of it.
async fn order(named: &OfView, action: Action) -> Result<()> {
    find(named).await?.0.carry_out(&named.how, action).await
}

async fn switch(switch: &SwitchView) -> Result<()> {
    let (target, view) = find(&switch.view).await?;
    let to = switch.to.clone().map_or_else(|| only_other(&view), Ok)?;
    target.carry_out(&switch.view.how, Action::Switch { to, accept_parked: switch.accept_parked }).await
}

async fn compare(compared: &Compared) -> Result<()> {
    let (target, view) = find(&compared.view).await?;
    let mut query = vec![("rows", compared.rows.to_string()), ("seed", compared.seed.to_string())];
    let builds = [("old", &compared.old), ("new", &compared.new)];
    query.extend(builds.into_iter().filter_map(|(side, build)| Some((side, build.clone()?))));
    let path = format!("/tombolo/views/{}/compare", view.view);
    let answer = target.get_within(&path, &query, COMPARE_BOUND).await?;
    match compared.view.how.format {
        Format::Json => say(&answer.to_string()),
        Format::Table => say(&compared::text(&answer)?),
    }
}

/// The build that is meant if none is named: the only one beside the live one.
fn only_other(view: &View) -> Result<String> {
    let others: Vec<&str> =
        view.builds.iter().map(|build| build.build.as_str()).filter(|build| *build != view.live).collect();
    match others[..] {
        [one] => Ok(one.to_owned()),
        [] => Err(Error::not_found(format!(
            "view {0:?} has no build but the live one, {1}; make one with `tombolo views rebuild {0}`",
            view.view, view.live
        ))),
        _ => Err(Error::usage(format!(
            "view {:?} has several builds beside the live one, {}; say which one with --to: {}",
            view.view,
            view.live,
            others.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(seconds_to_go: Option<f64>) -> Build {
        let text = json!({
            "build": "v1-b2", "stage": "building", "subscription": "history-v1-b2", "kept": true, "switches": true,
            "behind_live": 700, "parked_keys": 2, "events_done": 300, "events_total": 1000, "events_per_second": 100.4,
            "seconds_to_go": seconds_to_go, "made_at": "2026-11-21T00:00:00Z",
        });
        serde_json::from_value(text).unwrap()
    }

    fn view(builds: Vec<Build>) -> View {
        View { view: "history".into(), live: "v1-b1".into(), epoch: 1, rebuildable: true, builds }
    }

    #[test]
    fn a_build_is_a_row_with_its_progress() {
        let said = Said { service: "shop".into(), views: vec![view(vec![build(Some(7.0))])] };
        let expected = [
            "shop",
            "history",
            "v1-b2",
            "building",
            "300",
            "1000",
            "100",
            "7 s",
            "700",
            "2",
            "readers are switched to it when it is ready",
        ];
        assert_eq!(rows(&said), [expected]);
    }

    #[test]
    fn the_time_to_go_is_said_as_people_say_it() {
        let said = |seconds| time_to_go(&build(seconds));
        assert_eq!([said(None), said(Some(0.2)), said(Some(61.0))], ["-", "1 s", "1 min 1 s"]);
        assert_eq!(said(Some(7_260.0)), "2 h 1 min");
    }

    #[test]
    fn the_build_to_switch_to_is_only_guessed_if_there_is_one() {
        assert_eq!(only_other(&view(vec![build(None)])).unwrap(), "v1-b2");
        let other = Build { build: "v1-b3".into(), ..build(None) };
        let error = only_other(&view(vec![build(None), other])).unwrap_err();
        assert!(error.message.contains("v1-b2, v1-b3"), "{error}");
        assert!(only_other(&view(Vec::new())).unwrap_err().message.contains("tombolo views rebuild history"));
    }
}
