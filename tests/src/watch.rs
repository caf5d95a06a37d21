//! A discovery stream as a sidecar has it: what it holds, and the hash over that.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use weft_core::version::{SetHash, Version};
use weft_proto::v1;
use weft_proto::v1::discovery_client::DiscoveryClient;
use weft_proto::v1::watch_request::Message as Request;
use weft_proto::v1::watch_response::Message as Response;

use crate::PATIENCE;

/// What the control plane says.
#[derive(Debug)]
pub enum Heard {
    Update(v1::Update),
    Heartbeat(v1::Heartbeat),
}

/// One stream.
#[derive(Debug)]
pub struct Watch {
    requests: mpsc::Sender<v1::WatchRequest>,
    updates: Streaming<v1::WatchResponse>,
    /// Names with versions.
    held: BTreeMap<String, u64>,
}

impl Watch {
    /// Opens a stream, and says what is held from an earlier one.
    pub async fn open(channel: Channel, held: BTreeMap<String, u64>) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(64);
        let hello = v1::Hello {
            version: "test".to_owned(),
            held: held.iter().map(|(name, version)| v1::Held { name: name.clone(), version: *version }).collect(),
            ..Default::default()
        };
        let message = v1::WatchRequest { message: Some(Request::Hello(hello)) };
        requests.try_send(message).expect("a fresh channel has room");
        let answer = DiscoveryClient::new(channel).watch(ReceiverStream::new(receiver)).await?;
        Ok(Self { requests, updates: answer.into_inner(), held })
    }

    /// Asks for resources.
    pub fn subscribe(&self, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.send(Request::Subscribe(v1::Subscribe { names }));
    }

    fn send(&self, message: Request) {
        // A stream that has ended says so when it is listened to.
        let _ = self.requests.try_send(v1::WatchRequest { message: Some(message) });
    }

    /// What it holds.
    pub fn held(&self) -> &BTreeMap<String, u64> {
        &self.held
    }

    /// The next message; an update is acknowledged.
    ///
    /// # Panics
    ///
    /// If none comes in time.
    pub async fn next(&mut self) -> Result<Heard, Status> {
        loop {
            let message = timeout(PATIENCE, self.updates.message()).await.expect("heartbeats come every second")?;
            match message.expect("the stream goes on").message {
                Some(Response::Update(update)) => {
                    for resource in &update.resources {
                        self.held.insert(resource.name.clone(), resource.version);
                    }
                    self.send(Request::Ack(v1::Ack { nonce: update.nonce, ..Default::default() }));
                    return Ok(Heard::Update(update));
                }
                Some(Response::Heartbeat(beat)) => return Ok(Heard::Heartbeat(beat)),
                Some(Response::TelemetryWanted(_)) | None => {}
            }
        }
    }

    /// Listens until every one of these resources has come.
    pub async fn until(&mut self, names: &[&str]) -> BTreeMap<String, v1::Resource> {
        let mut come = BTreeMap::new();
        while !names.iter().all(|name| come.contains_key(*name)) {
            if let Heard::Update(update) = self.next().await.expect("the stream goes on") {
                come.extend(update.resources.into_iter().map(|resource| (resource.name.clone(), resource)));
            }
        }
        come
    }

    /// Listens until a heartbeat carries the hash of what is held here, and says how many updates came before it.
    pub async fn agree(&mut self) -> usize {
        let mut updates = 0;
        for _ in 0..20 {
            match self.next().await.expect("the stream goes on") {
                Heard::Update(_) => updates += 1,
                Heard::Heartbeat(beat) if beat.set_hash == self.hash() => return updates,
                Heard::Heartbeat(_) => {}
            }
        }
        panic!("the control plane never had the same set of resources as this end: {:?}", self.held)
    }

    fn hash(&self) -> u64 {
        let mut hash = SetHash::default();
        for (name, version) in &self.held {
            hash.add(name, Version(*version));
        }
        hash.0
    }
}
