//! A cluster's API server, followed live: every kind listed page by page, then watched, and listed again where the server has
//! forgotten where we were. It never gives up: what cannot be read is a problem, and waited for.
//!
//! Nothing is delivered before every kind has been read once, or is known to be none that this cluster has: Gateway API's kinds may be
//! absent, and are looked for again and again. One that cannot be read, whatever the reason, is waited for. After that a change is
//! passed on within milliseconds, together with those that came meanwhile; changes of one object that came together are one. So memory
//! is bounded by the objects there are.

mod known;
pub mod lean;
pub mod resource;
pub mod standing;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;
use weft_core::backoff::Backoff;

use self::known::{Event, Known, absence_shows};
use self::lean::{Lean, ReadIn};
use self::resource::{KINDS, Need, Resource, resource};
use self::standing::Statuses;
use super::Batch;
use crate::kubernetes::explain;
use crate::objects::Kind;
use crate::server::random;

/// Changes are gathered for this long after the first, so that a burst costs one pass.
const GATHER: Duration = Duration::from_millis(5);
/// The most that is gathered before it is passed on.
const MAX_GATHERED: usize = 2_000;
/// Objects in one page of a list, which is held whole until all of it is read.
const PAGE: u32 = 100;
/// The server ends a watch after this many seconds, and it is resumed; a connection that died unseen is noticed then, too.
const WATCH_SECS: u32 = 120;
/// What a watch has received and the model has not been told may be this much; then the server waits for us.
const WAITING: usize = 256;
/// A kind that the server does not have is looked for so often at first, until it is known to be absent, and then ever more seldom.
const QUICK_LOOK: Duration = Duration::from_millis(500);
/// How many such looks there are beyond the time after which it counts as absent.
const MORE_LOOKS: u128 = 2;
/// How often what stands is looked at without an event.
const LOOK: Duration = Duration::from_secs(5);

/// Follows the cluster until the receiver is dropped. What stands as status is noted in `statuses`.
pub fn follow(client: &Client, statuses: &Arc<Statuses>) -> mpsc::Receiver<Batch> {
    let (tx, rx) = mpsc::channel(4);
    let (events_tx, events) = mpsc::channel(WAITING);
    let mut watches = JoinSet::new();
    for kind in KINDS {
        watches.spawn(watch(*kind, client.clone(), events_tx.clone(), statuses.clone()));
    }
    // The watches end with this task, which ends with the receiver.
    tokio::spawn(gather(events, tx, watches, Known::new(KINDS, statuses.clone())));
    rx
}

/// Watches one kind until nobody listens, in the first of its versions that the server has.
async fn watch(kind: Kind, client: Client, events: mpsc::Sender<(Kind, Event)>, statuses: Arc<Statuses>) {
    let versions = resource(kind).versions;
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    // The version that is tried, how many in a row the server did not have, and how often it had none of them.
    let (mut at, mut missing, mut absences) = (0, 0, 0);
    let quick_looks = absence_shows(kind).as_millis() / QUICK_LOOK.as_millis() + MORE_LOOKS;
    loop {
        match follow_in(ReadIn { kind, version: versions[at] }, &client, &events, &statuses, &mut backoff).await {
            End::Unheard => return,
            End::Forgotten => (missing, absences) = (0, 0),
            End::Missing { worked } => {
                if worked {
                    (missing, absences) = (0, 0);
                }
                missing += 1;
                at = (at + 1) % versions.len();
                if missing < versions.len() {
                    continue;
                }
                missing = 0;
                absences += 1;
                if events.send((kind, Event::Absent)).await.is_err() {
                    return;
                }
                // Everything waits for the first of these.
                if absences <= quick_looks {
                    tokio::time::sleep(QUICK_LOOK).await;
                } else {
                    pause(&mut backoff).await;
                }
            }
        }
    }
}

/// Why a kind is not followed in a version any more.
enum End {
    /// The server does not have it; whether it had it before.
    Missing { worked: bool },
    /// The server has forgotten where the watch was: that is as it should be, and everything is listed again.
    Forgotten,
    /// Nobody listens.
    Unheard,
}

async fn pause(backoff: &mut Backoff) {
    tokio::time::sleep(backoff.next_wait(random()).max(Duration::from_millis(50))).await;
}

/// Watches one kind in one version.
async fn follow_in(
    read: ReadIn,
    client: &Client,
    events: &mpsc::Sender<(Kind, Event)>,
    statuses: &Statuses,
    backoff: &mut Backoff,
) -> End {
    let ReadIn { kind, version } = read;
    let resource = resource(kind);
    let config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECS);
    let mut stream = pin!(watcher(Api::<Lean>::all_with(client.clone(), &read), config));
    let mut worked = false;
    // A watcher never ends by itself.
    while let Some(event) = stream.next().await {
        let problem = match event {
            Ok(event) => {
                if !matches!(event, watcher::Event::Init) {
                    backoff.reset();
                    if !std::mem::replace(&mut worked, true) {
                        statuses.served(kind, version);
                    }
                }
                if events.send((kind, Event::of(kind, event))).await.is_err() {
                    return End::Unheard;
                }
                continue;
            }
            Err(e) => e,
        };
        let code = code(&problem);
        if code == 404 && resource.need == Need::WhereServed {
            return End::Missing { worked };
        }
        let failure = Event::Failed(failure(&resource, version, code, &problem));
        if code != GONE && events.send((kind, failure)).await.is_err() {
            return End::Unheard;
        }
        pause(backoff).await;
        // A watcher starts over by itself where it hears so within the watch, and not where the watch is refused for it.
        if code == GONE {
            return End::Forgotten;
        }
    }
    End::Unheard
}

const GONE: u16 = 410;

/// The server's own code for what is wrong; 0 where it did not say.
fn code(e: &watcher::Error) -> u16 {
    match e {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => match e {
            kube::Error::Api(status) => status.code,
            _ => 0,
        },
        watcher::Error::WatchError(status) => status.code,
        watcher::Error::NoResourceVersion => 0,
    }
}

/// What is wrong, and how to mend it.
fn failure(resource: &Resource, version: &str, code: u16, e: &watcher::Error) -> String {
    let what = resource.name();
    let why = match e {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => explain(e),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => "it sent an object without a resource version".into(),
    };
    match code {
        401 => format!("the API server does not know who we are ({why}): give the control plane a service account"),
        403 => format!("the control plane may not read them ({why}): its ClusterRole needs list and watch on {what}"),
        404 => format!("the API server has no {what} in version {version}: it is waited for"),
        _ => format!("{what} cannot be read ({why}): it is tried again"),
    }
}

/// Passes on what changed, in batches, until nobody listens.
async fn gather(
    mut events: mpsc::Receiver<(Kind, Event)>,
    batches: mpsc::Sender<Batch>,
    _watches: JoinSet<()>,
    mut known: Known,
) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some((kind, event)) = event else { return };
                known.hear(kind, event, Instant::now());
            }
            _ = look.tick() => {}
            () = batches.closed() => return,
        }
        let until = Instant::now() + GATHER;
        while known.waiting() > 0 && known.waiting() < MAX_GATHERED {
            match timeout_at(until, events.recv()).await {
                Ok(Some((kind, event))) => known.hear(kind, event, Instant::now()),
                Ok(None) => return,
                Err(_) => break,
            }
        }
        if let Some(batch) = known.take(Instant::now())
            && batches.send(batch).await.is_err()
        {
            return;
        }
    }
}
