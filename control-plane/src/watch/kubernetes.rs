//! A cluster's API server, followed live: every kind listed page by page, then watched, and listed again where the server has
//! forgotten where we were. It never gives up: what cannot be read is a problem, and waited for.
//!
//! Nothing is delivered before every kind has been read once. After that a change is passed on within milliseconds, together with
//! those that came meanwhile; changes of one object that came together are one. So memory is bounded by the objects there are.

mod known;
pub mod lean;

use std::pin::pin;
use std::time::Duration;

use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;
use weft_core::backoff::Backoff;

use self::known::{Event, Known};
use self::lean::{Lean, Watched};
use super::Batch;
use crate::kubernetes::explain;
use crate::objects::{EndpointSliceObject, Kind, NamespaceObject, PodObject, ServiceObject};
use crate::server::random;

/// The kinds that are read: nothing is served without all of them.
pub const KINDS: [Kind; 4] = [Kind::Namespace, Kind::Service, Kind::Pod, Kind::EndpointSlice];

/// Changes are gathered for this long after the first, so that a burst costs one pass.
const GATHER: Duration = Duration::from_millis(5);
/// The most that is gathered before it is passed on.
const MAX_GATHERED: usize = 2_000;
/// Objects in one page of a list.
const PAGE: u32 = 250;
/// The server ends a watch after this many seconds, and it is resumed; a connection that died unseen is noticed then, too.
const WATCH_SECS: u32 = 120;
/// What a watch has received and the model has not been told may be this much; then the server waits for us.
const WAITING: usize = 256;
/// How often what stands is looked at without an event.
const LOOK: Duration = Duration::from_secs(5);

/// Follows the cluster until the receiver is dropped.
pub fn follow(client: &Client) -> mpsc::Receiver<Batch> {
    let (tx, rx) = mpsc::channel(4);
    let (events_tx, events) = mpsc::channel(WAITING);
    let mut watches = JoinSet::new();
    watches.spawn(watch::<NamespaceObject>(client.clone(), events_tx.clone()));
    watches.spawn(watch::<ServiceObject>(client.clone(), events_tx.clone()));
    watches.spawn(watch::<PodObject>(client.clone(), events_tx.clone()));
    watches.spawn(watch::<EndpointSliceObject>(client.clone(), events_tx));
    // The watches end with this task, which ends with the receiver.
    tokio::spawn(gather(events, tx, watches));
    rx
}

/// Watches one kind until nobody listens.
async fn watch<T: Watched>(client: Client, events: mpsc::Sender<(Kind, Event)>) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    loop {
        let config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECS);
        let mut stream = pin!(watcher(Api::<Lean<T>>::all(client.clone()), config));
        // A watcher never ends by itself.
        while let Some(event) = stream.next().await {
            let problem = match event {
                Ok(event) => {
                    if !matches!(event, watcher::Event::Init) {
                        backoff.reset();
                    }
                    if events.send((T::KIND, event.into())).await.is_err() {
                        return;
                    }
                    continue;
                }
                Err(e) => e,
            };
            let code = code(&problem);
            // The server has forgotten where the watch was: that is as it should be, and everything is listed again.
            if code != GONE && events.send((T::KIND, Event::Failed(failure::<T>(code, &problem)))).await.is_err() {
                return;
            }
            tokio::time::sleep(backoff.next_wait(random()).max(Duration::from_millis(50))).await;
            // A watcher starts over by itself where it hears so within the watch, and not where the watch is refused for it.
            if code == GONE {
                break;
            }
        }
    }
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
fn failure<T: Watched>(code: u16, e: &watcher::Error) -> String {
    let what = if T::GROUP.is_empty() { T::PLURAL.to_owned() } else { format!("{}.{}", T::PLURAL, T::GROUP) };
    let why = match e {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => explain(e),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => "it sent an object without a resource version".into(),
    };
    match code {
        401 => format!("the API server does not know who we are ({why}): give the control plane a service account"),
        403 => format!("the control plane may not read them ({why}): its ClusterRole needs list and watch on {what}"),
        404 => format!("the API server has no {what} in version {}: it is waited for", T::VERSION),
        _ => format!("{what} cannot be read ({why}): it is tried again"),
    }
}

/// Passes on what changed, in batches, until nobody listens.
async fn gather(mut events: mpsc::Receiver<(Kind, Event)>, batches: mpsc::Sender<Batch>, _watches: JoinSet<()>) {
    let mut known = Known::new(&KINDS);
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
