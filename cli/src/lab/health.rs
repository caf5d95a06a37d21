//! Whether a workload can serve, as asked from inside its own network namespace, where nothing is redirected.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, sleep, timeout};

use crate::http;
use crate::mesh_file::{Health, Probe};

/// So many failures in a row make a workload that was ready not ready.
const FAILURES: u32 = 3;
/// Until it is ready for the first time, it is asked at least this often.
const EAGER: Duration = Duration::from_millis(200);

/// A request to run the command of the check once in the workload's place; the answer is what is wrong, or nothing.
pub(super) type Ask = oneshot::Sender<Option<String>>;

/// A change.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The run of the workload that it is about.
    pub(super) run: u64,
    pub(super) ready: bool,
    /// What is wrong.
    pub(super) why: String,
}

/// Asks again and again, and tells every change. Ends when nobody listens.
pub(super) async fn watch(
    health: Health,
    address: IpAddr,
    run: u64,
    asks: mpsc::Sender<Ask>,
    verdicts: mpsc::UnboundedSender<Verdict>,
) {
    let mut streak = Streak::default();
    loop {
        let outcome = match timeout(health.timeout, ask(&health.probe, address, &asks)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {:?}", health.timeout)),
        };
        if let Some((ready, why)) = streak.take(outcome)
            && verdicts.send(Verdict { run, ready, why }).is_err()
        {
            return;
        }
        if health.probe == Probe::Started {
            return;
        }
        sleep(if streak.ready { health.interval } else { health.interval.min(EAGER) }).await;
    }
}

async fn ask(probe: &Probe, address: IpAddr, asks: &mpsc::Sender<Ask>) -> Result<(), String> {
    match probe {
        Probe::Started => Ok(()),
        Probe::Tcp(port) => connect(address, *port).await.map(drop),
        Probe::Http { port, path } => {
            let stream = connect(address, *port).await?;
            let host = SocketAddr::new(address, *port).to_string();
            match http::get(stream, &host, path).await {
                Ok((200..=399, _)) => Ok(()),
                Ok((status, _)) => Err(format!("GET {path} on port {port} answers {status}")),
                Err(error) => Err(format!("GET {path} on port {port}: {error}")),
            }
        }
        Probe::Command(_) => {
            let (answer, wrong) = oneshot::channel();
            asks.send(answer).await.map_err(|_| "the workload's place is gone".to_owned())?;
            match wrong.await {
                Ok(None) => Ok(()),
                Ok(Some(wrong)) => Err(wrong),
                Err(_) => Err("the command could not be run".to_owned()),
            }
        }
    }
}

async fn connect(address: IpAddr, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((address, port)).await.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => " (it must listen on all addresses, not on localhost alone)",
            _ => "",
        };
        format!("{}: {error}{hint}", SocketAddr::new(address, port))
    })
}

/// Answers so far: one success makes ready, [`FAILURES`] failures in a row undo that.
#[derive(Debug, Default)]
struct Streak {
    ready: bool,
    failures: u32,
    /// What was told last.
    told: Option<String>,
}

impl Streak {
    /// Takes an answer, and gives what changes with it.
    fn take(&mut self, outcome: Result<(), String>) -> Option<(bool, String)> {
        match outcome {
            Ok(()) => {
                self.failures = 0;
                self.told = None;
                let changed = !std::mem::replace(&mut self.ready, true);
                changed.then(|| (true, String::new()))
            }
            Err(why) => {
                self.failures += 1;
                if self.ready && self.failures < FAILURES {
                    return None;
                }
                // A workload that is only starting refuses connections for a moment: that is no news.
                let news = self.failures >= FAILURES && self.told.as_ref() != Some(&why);
                self.ready = false;
                news.then(|| {
                    self.told = Some(why.clone());
                    (false, why)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(why: &str) -> Result<(), String> {
        Err(why.to_owned())
    }

    #[test]
    fn one_success_makes_ready_and_three_failures_undo_it() {
        let mut streak = Streak::default();
        assert_eq!(streak.take(wrong("a")), None);
        assert_eq!(streak.take(Ok(())), Some((true, String::new())));
        assert_eq!(streak.take(Ok(())), None);
        assert_eq!(streak.take(wrong("a")), None);
        assert_eq!(streak.take(wrong("a")), None);
        assert_eq!(streak.take(wrong("a")), Some((false, "a".to_owned())));
        assert_eq!(streak.take(wrong("a")), None);
        assert_eq!(streak.take(wrong("b")), Some((false, "b".to_owned())));
        assert_eq!(streak.take(Ok(())), Some((true, String::new())));
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_is_not_healthy() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (asks, _asked) = mpsc::channel(1);
        assert_eq!(ask(&Probe::Tcp(address.port()), address.ip(), &asks).await, Ok(()));
        drop(listener);
        let why = ask(&Probe::Tcp(address.port()), address.ip(), &asks).await.expect_err("closed");
        assert!(why.contains("listen on all addresses"), "{why}");
    }
}
