//! `weft-control-plane relay --state=DIR`: the operator socket of the control plane that runs in the same container, on the standard streams. So who may start a
//! command there (`kubectl exec`), and nobody else, reaches it from afar.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};

/// The socket's name in the state directory.
pub const SOCKET: &str = "operator.sock";

/// Passes bytes both ways until either end is done.
pub fn main(words: &[String]) -> anyhow::Result<()> {
    let [state] = words else { bail!("weft-control-plane relay --state=DIR") };
    let state = state.strip_prefix("--state=").context("weft-control-plane relay --state=DIR")?;
    let path = Path::new(state).join(SOCKET);
    let socket = UnixStream::connect(&path).with_context(|| format!("{} does not answer", path.display()))?;
    let mut towards = socket.try_clone()?;
    // It ends with the process: a read of standard input is not broken off.
    std::thread::spawn(move || {
        let _ = copy(&mut io::stdin().lock(), &mut towards);
        let _ = towards.shutdown(Shutdown::Write);
    });
    match copy(&mut &socket, &mut io::stdout().lock()) {
        // Who asked is gone.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        ended => Ok(ended?),
    }
}

/// As `io::copy`, but nothing waits in a buffer.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n])?;
        to.flush()?;
    }
}
