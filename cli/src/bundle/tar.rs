//! Files as a tar archive has them: POSIX ustar (IEEE 1003.1, pax, "ustar Interchange Format").

use anyhow::{Context, bail};

const BLOCK: usize = 512;
/// Two blocks of zeros end an archive.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// A regular file: its header and its content, padded. Names of up to 255 bytes that can be split at a `/`.
pub(super) fn entry(name: &str, content: &[u8], modified: u64) -> anyhow::Result<Vec<u8>> {
    let (prefix, name) = split(name).with_context(|| format!("{name} is too long a name for an archive"))?;
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, octal(content.len() as u64)?.as_bytes());
    put(136, octal(modified)?.as_bytes());
    // The sum is taken with blanks in its own place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = header.to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    Ok(out)
}

fn octal(number: u64) -> anyhow::Result<String> {
    if number >= 1 << 33 {
        bail!("a file of {number} bytes is too large for an archive");
    }
    Ok(format!("{number:011o}\0"))
}

/// Whether a name can be written.
pub(super) fn takes(name: &str) -> bool {
    split(name).is_some()
}

/// Prefix and name, of at most 155 and 100 bytes.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= 100 {
        return Some(("", name));
    }
    name.match_indices('/')
        .map(|(at, _)| (&name[..at], &name[at + 1..]))
        .find(|(prefix, rest)| rest.len() <= 100 && prefix.len() <= 155)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_reads_what_is_written() {
        let long = format!("weft-bundle/sidecars/{}/{}/config.json", "n".repeat(60), "p".repeat(70));
        let mut archive = entry("weft-bundle/a.txt", b"hello\n", 1_700_000_000).expect("short");
        archive.extend(entry(&long, &[b'x'; 1000], 0).expect("it can be split"));
        archive.extend(END);
        let mut tar = Command::new("tar")
            .args(["-tvf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar is everywhere");
        tar.stdin.take().expect("piped").write_all(&archive).expect("it reads");
        let output = tar.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains("weft-bundle/a.txt") && text.contains(&long) && text.contains("1000"),
            "{text}"
        );
        assert!(entry(&"x".repeat(101), b"", 0).is_err());
    }
}
