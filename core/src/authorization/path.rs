//! The path that clauses are compared with: its escapes undone, or none at all where two readers could take it for two paths.
//!
//! What is forwarded is the path as it came. So a path is either one that every reader takes alike (RFC 3986, section 6.2.2.2: an escape of a
//! character that has no meaning of its own is that character), or it is not judged: whatever depends on it is refused.

use std::borrow::Cow;
use std::fmt;

/// Why a path could be taken for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PathDefect {
    /// It does not begin with `/`, and is not the `*` of OPTIONS.
    NotRooted,
    /// A segment `.` or `..`, escaped or not.
    DotSegment,
    /// An empty segment before the last, as in `//`.
    DoubledSlash,
    /// `%2F`.
    EncodedSlash,
    /// `\`, escaped or not.
    Backslash,
    /// `;`, escaped or not: some readers end the segment there.
    Parameter,
    /// `#`, or an escaped `?` or `#`: a reader that undoes escapes first ends the path there.
    Delimiter,
    /// NUL, escaped or not.
    Nul,
    /// Another control character, escaped or not.
    Control,
    /// `%` without two hexadecimal digits.
    InvalidEscape,
    /// With its escapes undone it has escapes.
    DoubleEncoding,
    /// With its escapes undone it is not UTF-8.
    NotUtf8,
}

impl PathDefect {
    /// What is wrong, to be read after "the path".
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotRooted => "does not begin with '/'",
            Self::DotSegment => "has a dot segment",
            Self::DoubledSlash => "has doubled slashes",
            Self::EncodedSlash => "has an encoded slash",
            Self::Backslash => "has a backslash",
            Self::Parameter => "has a ';'",
            Self::Delimiter => "has a '#', or an encoded '?' or '#'",
            Self::Nul => "has a NUL",
            Self::Control => "has a control character",
            Self::InvalidEscape => "has a '%' that is no escape",
            Self::DoubleEncoding => "is encoded twice",
            Self::NotUtf8 => "is not UTF-8",
        }
    }
}

impl fmt::Display for PathDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The path with its escapes undone. `raw` is a request's path without the query. Borrowed where there is nothing to undo.
pub fn normalise(raw: &[u8]) -> Result<Cow<'_, [u8]>, PathDefect> {
    if raw == b"*" {
        return Ok(Cow::Borrowed(raw));
    }
    if raw.first() != Some(&b'/') {
        return Err(PathDefect::NotRooted);
    }
    let path = if raw.contains(&b'%') { Cow::Owned(unescape(raw)?) } else { Cow::Borrowed(raw) };
    path.iter().try_for_each(|byte| allowed(*byte))?;
    if matches!(path, Cow::Owned(_)) && path.windows(3).any(is_escape) {
        return Err(PathDefect::DoubleEncoding);
    }
    if std::str::from_utf8(&path).is_err() {
        return Err(PathDefect::NotUtf8);
    }
    let mut segments = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            b"" if segments.peek().is_some() => return Err(PathDefect::DoubledSlash),
            b"." | b".." => return Err(PathDefect::DotSegment),
            _ => {}
        }
    }
    Ok(path)
}

fn unescape(raw: &[u8]) -> Result<Vec<u8>, PathDefect> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [byte, after @ ..] = rest {
        let (byte, after) = match (*byte, after) {
            (b'%', [high, low, after @ ..]) => {
                let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return Err(PathDefect::InvalidEscape) };
                match high << 4 | low {
                    b'/' => return Err(PathDefect::EncodedSlash),
                    b'?' | b'#' => return Err(PathDefect::Delimiter),
                    byte => (byte, after),
                }
            }
            (b'%', _) => return Err(PathDefect::InvalidEscape),
            (byte, after) => (byte, after),
        };
        out.push(byte);
        rest = after;
    }
    Ok(out)
}

fn allowed(byte: u8) -> Result<(), PathDefect> {
    match byte {
        0 => Err(PathDefect::Nul),
        b'\\' => Err(PathDefect::Backslash),
        b';' => Err(PathDefect::Parameter),
        b'#' => Err(PathDefect::Delimiter),
        0x01..0x20 | 0x7f => Err(PathDefect::Control),
        _ => Ok(()),
    }
}

fn is_escape(three: &[u8]) -> bool {
    matches!(three, [b'%', high, low] if digit(*high).is_some() && digit(*low).is_some())
}

fn digit(hex: u8) -> Option<u8> {
    char::from(hex).to_digit(16).map(|digit| digit as u8)
}

/// Whether a normalised path is `prefix` or lies below it.
pub(super) fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    prefix == b"/" && path.first() == Some(&b'/')
        || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Whether a normalised path has the segments of a template.
pub(super) fn is_instance(path: &[u8], template: &[u8]) -> bool {
    let slash = |byte: &u8| *byte == b'/';
    let (mut sent, mut asked) = (path.split(slash), template.split(slash));
    loop {
        match (sent.next(), asked.next()) {
            (None, None) => return true,
            (Some(sent), Some(asked)) if is_variable(asked) && !sent.is_empty() => {}
            (Some(sent), Some(asked)) if sent == asked && !is_variable(asked) => {}
            _ => return false,
        }
    }
}

/// Whether a segment of a template stands for any.
pub(super) fn is_variable(segment: &[u8]) -> bool {
    segment.len() >= 3 && segment.first() == Some(&b'{') && segment.last() == Some(&b'}')
}

/// Service and method of a gRPC call's normalised path, at the last slash.
pub fn grpc_call(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let path = path.strip_prefix(b"/")?;
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    Some((&path[..slash], &path[slash + 1..])).filter(|(service, method)| !service.is_empty() && !method.is_empty())
}

#[cfg(test)]
mod tests;
