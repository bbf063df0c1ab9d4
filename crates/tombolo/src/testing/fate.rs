//! What a world has in store for one life of a part, a service or the bus: the named point at which it crashes, and what
//! is done twice.
//!
//! Every task and request of a service runs within its fate, and the thread of a bus works for one, so that the hook of
//! the barriers, which is one for the whole process, knows whose point was reached.
//!
//! Invariant: once a life has ended none of its tasks runs on: the one at the named point never passes it.

use std::future::Future;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::middleware::{self, Next};
use http::HeaderValue;
use http::header::CONNECTION;
use tokio::sync::watch;
use tombolo_event::barrier;

use super::dice::{Dice, lock};
use super::weather::Weather;
use crate::life::Repeat;

tokio::task_local! {
    static FATE: Arc<Fate>;
}

/// The fate of one life.
pub(crate) struct Fate {
    pub(super) weather: Weather,
    pub(super) dice: Dice,
    point: Mutex<Option<Point>>,
    /// Why the life ended, once it has.
    ended: watch::Sender<Option<String>>,
}

/// A point of the path, and how often it is still passed.
struct Point {
    name: &'static str,
    passes: u32,
}

/// What unwinds the tasks of a life that has ended. The panic hook never sees it.
struct Ended;

impl Fate {
    pub(super) fn new(weather: Weather, dice: Dice) -> Arc<Self> {
        barrier::install(reached);
        Arc::new(Self { weather, dice, point: Mutex::default(), ended: watch::Sender::new(None) })
    }

    /// The life ends when it is for the `nth` time at the point `name`, which must be one of `points`.
    pub(super) fn arm(&self, name: &str, nth: u32, points: impl Fn(&str) -> bool) {
        let mut points = barrier::ALL.iter().copied().filter(|point| points(point));
        let Some(name) = points.clone().find(|point| *point == name) else {
            let points = points.by_ref().collect::<Vec<_>>().join(", ");
            panic!("there is no point {name:?} on this part's path; there are: {points}");
        };
        *lock(&self.point) = Some(Point { name, passes: nth.saturating_sub(1) });
    }

    /// Ends the life.
    pub(super) fn end(&self, why: String) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(why);
            first
        });
    }

    /// Why the life ended, if it has.
    pub(super) fn end_of(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits until the life has ended.
    pub(super) async fn over(&self) {
        // The sender is in here, so this cannot fail.
        self.ended.subscribe().wait_for(Option::is_some).await.ok();
    }

    /// Runs `work` until it is done or the life has ended.
    pub(crate) async fn rules<T>(self: Arc<Self>, work: impl Future<Output = T>) -> T {
        let life = Arc::clone(&self);
        let lasting = async move {
            tokio::select! {
                biased;
                () = life.over() => resume_unwind(Box::new(Ended)),
                done = work => done,
            }
        };
        FATE.scope(self, lasting).await
    }

    /// Runs every request within this fate. No connection outlives its request, so none outlives the life.
    pub(crate) fn over_requests(self: &Arc<Self>, router: Router) -> Router {
        let fate = Arc::clone(self);
        router.layer(middleware::from_fn(move |request, next: Next| {
            let fate = Arc::clone(&fate);
            async move {
                let mut response = fate.rules(next.run(request)).await;
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
        }))
    }

    /// Whether, and how, the batch that begins with `first` is handled twice.
    pub(crate) fn repeats(&self, subscription: &str, first: (&str, u32, u64)) -> Repeat {
        if !self.weather.twice {
            return Repeat::Never;
        }
        let (topic, partition, sequence) = first;
        match self.dice.picks(2, format_args!("repeat/{subscription}/{topic}/{partition}/{sequence}")) {
            true => Repeat::BeforeCommit,
            false => Repeat::AfterCommit,
        }
    }

    /// Whether the life ends here.
    fn ends_at(&self, name: &'static str) -> bool {
        let mut point = lock(&self.point);
        let Some(armed) = point.as_mut().filter(|point| point.name == name) else { return false };
        if armed.passes > 0 {
            armed.passes -= 1;
            return false;
        }
        *point = None;
        true
    }
}

/// What happens at every barrier of the path.
fn reached(name: &'static str) {
    let fate = FATE.try_with(Arc::clone).ok().or_else(|| barrier::owner()?.downcast().ok());
    if let Some(fate) = fate.filter(|fate| fate.ends_at(name)) {
        fate.end(format!("crashed at {name}"));
        resume_unwind(Box::new(Ended));
    }
}
