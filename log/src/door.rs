//! How what a program logs is asked for and changed from outside, where it has no admin socket: `weft-injector log [FILTER]`, started beside it (`kubectl exec`, or by the
//! owner of a mesh on this machine). It is a socket in Linux's abstract namespace, which needs no directory that can be written to, is in reach of the pod's own network namespace
//! alone, and is gone with the process. Only the process's own user, and root, are answered.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use crate::Levels;
use crate::levels::LONGEST;

/// How long either side may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where something failed for want of a resource, such as open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Before an answer that is a refusal.
const REFUSED: &str = "!";

fn address(program: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("{program}.log"))
}

/// Answers from now on, by a thread that ends with the process. Where it cannot, because another one of this program runs in the same network namespace, that is told, and what
/// is logged stays as it is.
pub fn open(program: &str, levels: Levels) {
    let opened = address(program).and_then(|address| UnixListener::bind_addr(&address)).and_then(|listener| {
        std::thread::Builder::new().name("weft-log-door".to_owned()).spawn(move || {
            loop {
                match listener.accept() {
                    // Who is gone, or silent, harms nobody.
                    Ok((stream, _)) => drop(answer(stream, &levels)),
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        })
    });
    if let Err(error) = opened {
        tracing::warn!(%error, "what is logged cannot be changed while this runs: is there another {program} in the same network namespace?");
    }
}

fn answer(mut stream: UnixStream, levels: &Levels) -> io::Result<()> {
    let caller = getsockopt(&stream.as_fd(), sockopt::PeerCredentials)?.uid();
    if caller != 0 && caller != geteuid().as_raw() {
        return stream.write_all(format!("{REFUSED}this is for its own user and root, and not for user {caller}").as_bytes());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut filter = Vec::new();
    (&mut stream).take(LONGEST as u64 + 1).read_to_end(&mut filter)?;
    let filter = String::from_utf8_lossy(&filter);
    let outcome = if filter.is_empty() { Ok(()) } else { levels.set(&filter) };
    let said = match outcome {
        Ok(()) => levels.now().unwrap_or_else(|| "fixed".to_owned()),
        Err(why) => format!("{REFUSED}{why}"),
    };
    stream.write_all(said.as_bytes())
}

/// What the one that runs logs, after `filter` took its place where there is one.
fn ask(program: &str, filter: &str) -> anyhow::Result<String> {
    let stream = address(program).and_then(|address| UnixStream::connect_addr(&address));
    let mut stream = stream.with_context(|| format!("no {program} runs here, in this network namespace"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(filter.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("it does not answer")?;
    match said.strip_prefix(REFUSED) {
        Some(why) => bail!("{why}"),
        None => Ok(said),
    }
}

/// `PROGRAM log [FILTER]`: asks the one that runs.
pub fn main(program: &str, words: &[String]) -> anyhow::Result<()> {
    let filter = match words {
        [] => "",
        [filter] if !filter.is_empty() => filter,
        _ => bail!("{program} log [FILTER]"),
    };
    let said = ask(program, filter)?;
    writeln!(io::stdout(), "{said}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::{Registry, reload};

    use super::*;

    #[test]
    fn what_is_logged_is_asked_for_and_changed_from_outside() {
        let program = format!("weft-test-{}", std::process::id());
        assert!(ask(&program, "").expect_err("nobody runs").to_string().contains("no weft-test"));
        let (_layer, handle) = reload::Layer::<_, Registry>::new("info".parse::<Targets>().expect("a filter"));
        let levels = Levels::new(handle, None);
        open(&program, levels.clone());
        assert_eq!(ask(&program, "").expect("an answer"), "info");
        assert_eq!(ask(&program, "warn,h2=debug").expect("it is one"), "h2=debug,warn");
        assert!(ask(&program, "a=b=c").expect_err("it is none").to_string().contains("is no filter"));
        // Somebody who asks for nothing, and one who goes on for ever, are done with in time.
        let silent = UnixStream::connect_addr(&address(&program).expect("a name")).expect("it listens");
        assert!(ask(&program, &"x".repeat(LONGEST + 1)).is_err());
        drop(silent);
        assert_eq!(levels.now().as_deref(), Some("h2=debug,warn"));
    }
}
