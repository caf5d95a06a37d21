//! The way to another pod of the mesh: whether its redirect is in force, whether its sidecar answers, and whether large packets get there.
//!
//! A path that loses large packets without a word (RFC 4821 calls it a black hole) lets connections through and stalls what follows. So the peer's admin
//! port is asked twice, once in one small packet and once in several full ones; where only the small one arrives, smaller segments (`TCP_MAXSEG`) are tried
//! until one arrives. No right is needed for that, and it is TCP itself that is tried.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::at;
use crate::io::Dialer;
use crate::worker::Shared;

/// How long one question may take; a first packet that is lost is repeated after a second.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// How long a connection to a port where nobody listens may take to be caught or refused.
const CAUGHT: Duration = Duration::from_millis(1_500);
/// More than two full packets of the usual size, and less than what an admin port reads.
const LARGE: usize = 4_000;
/// Sizes of segments that are tried, largest first: RFC 9293 has 536 as the least that every path takes.
const SEGMENTS: [u32; 6] = [1_380, 1_320, 1_240, 1_120, 960, 536];
/// A port at which nobody listens but a redirect.
const NOBODYS: u16 = 65_531;
/// Octets of IP and TCP header without options.
const HEADERS_V4: u32 = 40;
const HEADERS_V6: u32 = 60;

/// Looks, and tells what was found.
pub(super) async fn look(shared: &Shared, to: IpAddr) -> Value {
    let dialer = Dialer { mark: shared.config.net.mark };
    let admin = at(to, shared.config.admin.admin_port);
    let (redirect, small) = tokio::join!(caught(dialer, at(to, NOBODYS)), ask(dialer, admin, 0, None));
    let large = match &small {
        Ok(_) => Some(ask(dialer, admin, LARGE, None).await),
        Err(_) => None,
    };
    let mut passes = None;
    if let Some(Err(_)) = &large {
        let tries = SEGMENTS.map(|segment| async move { (segment, ask(dialer, admin, LARGE, Some(segment)).await.is_ok()) });
        let [t0, t1, t2, t3, t4, t5] = tries;
        let tried = <[_; 6]>::from(tokio::join!(t0, t1, t2, t3, t4, t5));
        passes = tried.into_iter().find(|(_, passed)| *passed).map(|(segment, _)| segment);
    }
    let headers = if to.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
    let told = |outcome: &Result<Duration, String>| match outcome {
        Ok(took) => json!({"millis": took.as_secs_f64() * 1e3}),
        Err(why) => json!({"error": why}),
    };
    json!({
        "to": to,
        "redirect": redirect,
        "small": told(&small),
        "large": large.as_ref().map(told),
        "largest_packet": passes.map(|segment| segment + headers),
    })
}

/// What becomes of a connection to a port where nobody listens: `caught`, `refused`, or why neither can be said.
async fn caught(dialer: Dialer, to: SocketAddr) -> String {
    match timeout(CAUGHT, dialer.connect(to)).await {
        Ok(Ok(_)) => "caught".to_owned(),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "silent".to_owned(),
    }
}

/// Asks an admin port whether it lives, in a request of so many octets more than it needs, and says how long that took.
async fn ask(dialer: Dialer, to: SocketAddr, more: usize, segment: Option<u32>) -> Result<Duration, String> {
    let began = Instant::now();
    let asking = async {
        let mut stream = match segment {
            None => dialer.connect(to).await?,
            Some(segment) => dialer.connect_in_segments(to, segment).await?,
        };
        exchange(&mut stream, more).await
    };
    match timeout(PATIENCE, asking).await {
        Ok(Ok(())) => Ok(began.elapsed()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {:.1} s", PATIENCE.as_secs_f64())),
    }
}

async fn exchange(stream: &mut TcpStream, more: usize) -> io::Result<()> {
    let filler = "w".repeat(more);
    let request = format!("GET /live HTTP/1.1\r\nHost: sidecar\r\nConnection: close\r\nWeft-Filler: {filler}\r\n\r\n");
    // What is not acknowledged when this is given up goes with the connection.
    let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    if answer == *b"HTTP/1.1 200" {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it is no sidecar's admin port"))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_port_answers_or_it_is_told_why_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let to = listener.local_addr().expect("it listens");
        let serving = async {
            for answer in ["HTTP/1.1 200 OK\r\n\r\n", "SSH-2.0-nothing\r\n"] {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = vec![0; 8_192];
                let mut n = 0;
                while !request[..n].ends_with(b"\r\n\r\n") {
                    n += stream.read(&mut request[n..]).await.expect("a request");
                }
                assert!(n > LARGE, "{n}");
                stream.write_all(answer.as_bytes()).await.expect("an answer");
                let _ = stream.read(&mut [0]).await;
            }
        };
        let dialer = Dialer { mark: 0 };
        let asking = async {
            assert!(ask(dialer, to, LARGE, Some(536)).await.is_ok());
            assert_eq!(ask(dialer, to, LARGE, None).await.expect_err("no HTTP"), "it is no sidecar's admin port");
        };
        tokio::join!(serving, asking);
        drop(listener);
        assert_eq!(caught(dialer, to).await, "refused");
    }
}
