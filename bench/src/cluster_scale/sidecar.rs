//! A sidecar as the control plane sees one: a stream of discovery with an SVID, whose updates are reported as they arrive.

use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_proto::v1;
use weft_proto::v1::discovery_client::DiscoveryClient;
use weft_proto::v1::watch_request::Message as Ask;
use weft_proto::v1::watch_response::Message as Answer;
use weft_sidecar::config::Config;
use weft_sidecar::control::{Trust, connect};
use weft_tls::{Svid, TrustBundle};
use zeroize::Zeroizing;

/// An update: the resource's name, and when it was read.
pub(super) type Arrival = (String, Instant);

/// Subscribes to services by their addresses, as a sidecar does whose application dials them. `namespace` and `pod` are those of the
/// certificate.
pub(super) async fn subscribe(
    plane: &str,
    authority: &Authority,
    (namespace, account, pod): (&str, &str, &str),
    addresses: &[String],
) -> anyhow::Result<mpsc::UnboundedReceiver<Arrival>> {
    let id = format!("spiffe://{}/ns/{namespace}/sa/{account}", authority.trust_domain());
    let leaf = authority.try_leaf(&LeafSpec::new(LeafKind::Valid, id).with_pod(format!("{namespace}/{pod}")))?;
    let svid = Svid::new(leaf.chain_der, Zeroizing::new(leaf.key_der.secret_der().to_vec()))?;
    let bundle = Arc::new(TrustBundle::new(authority.trust_domain().clone(), vec![authority.root_der()])?);
    let identity = format!("{namespace}/{account}");
    let config =
        Config::try_parse_from(["weft-sidecar", "--control-plane", plane, "--identity", &identity, "--pod-ips", "127.0.0.1"])?;
    let channel = connect(&config, Trust::Bundle(&svid, &bundle)).await?;
    let (asks, rx) = mpsc::channel(16);
    asks.send(ask(Ask::Hello(v1::Hello::default()))).await?;
    let names = addresses.iter().map(|address| format!("address/{address}")).collect();
    asks.send(ask(Ask::Subscribe(v1::Subscribe { names }))).await?;
    let answers = DiscoveryClient::new(channel).watch(ReceiverStream::new(rx)).await?.into_inner();
    let (arrivals, seen) = mpsc::unbounded_channel();
    // It ends with the stream, or with the runtime.
    tokio::spawn(async move {
        if let Err(e) = follow(answers, asks, &arrivals).await
            && !arrivals.is_closed()
        {
            eprintln!("the stream ended: {e:#}");
        }
    });
    Ok(seen)
}

fn ask(message: Ask) -> v1::WatchRequest {
    v1::WatchRequest { message: Some(message) }
}

async fn follow(
    mut answers: Streaming<v1::WatchResponse>,
    asks: mpsc::Sender<v1::WatchRequest>,
    arrivals: &mpsc::UnboundedSender<Arrival>,
) -> anyhow::Result<()> {
    while let Some(message) = answers.message().await? {
        let Some(Answer::Update(update)) = message.message else { continue };
        let now = Instant::now();
        asks.send(ask(Ask::Ack(v1::Ack { nonce: update.nonce, ..Default::default() }))).await?;
        for resource in update.resources {
            if arrivals.send((resource.name, now)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
