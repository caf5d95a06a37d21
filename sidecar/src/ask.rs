//! `weft-sidecar ask [POST|FOLLOW] PATH`: one question to the sidecar that runs in the same container, on its admin socket. So a command that is started beside it
//! (`kubectl exec`) needs no other program there.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

const USAGE: &str = "weft-sidecar ask [POST|FOLLOW] PATH, where WEFT_ADMIN_SOCKET names the socket";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks by the words of a command line, and writes the body of a good answer to standard output.
pub fn main(words: &[String]) -> anyhow::Result<()> {
    let (method, path) = match words {
        [path] => ("GET", path),
        [method, path] if ["GET", "POST", "FOLLOW"].contains(&method.as_str()) => (method.as_str(), path),
        _ => bail!(USAGE),
    };
    if !path.starts_with('/') || path.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
        bail!("{path:?} is no path: {USAGE}");
    }
    let socket = std::env::var_os("WEFT_ADMIN_SOCKET").context(USAGE)?;
    if method == "FOLLOW" {
        return follow(Path::new(&socket), path);
    }
    let body = ask(Path::new(&socket), method, path)?;
    std::io::stdout().write_all(&body)?;
    Ok(())
}

/// A tap says that it is there every two seconds: who is silent for longer is gone.
const SILENCE: Duration = Duration::from_secs(15);

/// Passes on an answer for as long as it comes.
fn follow(socket: &Path, path: &str) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("{} does not answer", socket.display()))?;
    stream.set_read_timeout(Some(SILENCE))?;
    // In this version of HTTP a body without a length ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: sidecar\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 * 1024 {
        if answer.read_until(b'\n', &mut head)? == 0 {
            break;
        }
    }
    if head.split(|b| *b == b' ').nth(1).is_none_or(|status| status != b"200") {
        let mut why = String::new();
        answer.take(16 * 1024).read_to_string(&mut why)?;
        bail!("{path}: it answers: {}", why.trim());
    }
    let mut out = std::io::stdout().lock();
    let mut line = Vec::new();
    while answer.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)?;
        out.flush()?;
        line.clear();
    }
    Ok(())
}

fn ask(socket: &Path, method: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("{} does not answer", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: sidecar\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("it does not answer in time")?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("the answer is not HTTP")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let body = answer.split_off(end + 4);
    let status = head.lines().next().and_then(|line| line.split_once(' ')).map_or("", |(_, status)| status);
    if !status.starts_with("200") {
        bail!("{method} {path}: it answers {}: {}", status.trim(), String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_asked_is_asked() {
        for words in [&[][..], &["PUT", "/x"], &["x"], &["/a b"], &["/a\r\nx: y"], &["GET", "/a", "b"]] {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            assert!(main(&words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn the_body_of_a_good_answer_is_given() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let server = std::thread::spawn(move || {
            for answer in ["HTTP/1.1 200 OK\r\n\r\n{}\n", "HTTP/1.1 404 Not Found\r\n\r\nnone\n"] {
                let (mut stream, _) = listener.accept().expect("a client");
                let (mut asked, mut byte) = (Vec::new(), [0]);
                while !asked.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte).expect("a question");
                    asked.push(byte[0]);
                }
                assert!(asked.starts_with(b"GET /x HTTP/1.1\r\n"), "{asked:?}");
                stream.write_all(answer.as_bytes()).expect("it listens");
            }
        });
        assert_eq!(ask(&socket, "GET", "/x").expect("good"), b"{}\n");
        assert!(ask(&socket, "GET", "/x").expect_err("not good").to_string().contains("404"));
        server.join().expect("it ends");
    }
}
