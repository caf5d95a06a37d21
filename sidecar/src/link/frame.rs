//! Frames of `weft/link2`: eight octets of header, then the payload. Integers are big-endian.
//!
//! ```text
//! | length: u24 | kind: u8 | stream: u32 | payload: length octets |
//! ```

use weft_core::protocol::MeshProtocol;

/// Octets of a header.
pub const HEADER: usize = 8;
/// The longest payload, in octets: what is read at once goes out as one frame.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// The longest payload of a frame that is not [`Kind::Data`].
pub const MAX_CONTROL: usize = 4;

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A stream begins. Payload: what is spoken on it, one octet. Only whoever opened the connection opens streams, by rising numbers.
    Open = 1,
    /// Bytes, one at least.
    Data = 2,
    /// No more bytes follow.
    Fin = 3,
    /// Nobody reads what comes from here on.
    Stop = 4,
    /// The stream has broken off, both ways. Payload: a [`Cause`], one octet.
    Reset = 5,
    /// So many more bytes may be sent. Payload: u32, above 0.
    Credit = 6,
    /// No stream above this one was or will be served: it may be opened elsewhere. Above all of them: no more are to begin, and those that do are served.
    GoAway = 7,
    /// Whoever hears this says [`Kind::Pong`]. About stream 0.
    Ping = 8,
    /// The answer to it.
    Pong = 9,
}

/// Why a stream was broken off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Cause {
    /// It ended as a TCP connection does that is reset.
    Reset = 0,
    /// Nothing of it was looked at: it may be opened elsewhere.
    Refused = 1,
    /// The same, for whoever serves it has as much to do as it takes.
    Shed = 2,
}

/// What the other end may not do. It ends the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    #[error("a frame of kind {0:?} is {1} octets long")]
    Length(Kind, usize),
    #[error("a frame of kind {0:?} is about stream {1}")]
    Stream(Kind, u32),
    #[error("what is to be spoken on a stream is not known: {0}")]
    UnknownProtocol(u8),
    #[error("more bytes on stream {0} than it was given credit for")]
    Credit(u32),
    #[error("bytes on stream {0} after its end")]
    AfterEnd(u32),
}

/// A header, checked as far as it can be by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub kind: Kind,
    pub stream: u32,
    pub length: usize,
}

impl Header {
    /// As it goes out.
    pub fn octets(self) -> [u8; HEADER] {
        let mut octets = [0; HEADER];
        octets[..4].copy_from_slice(&((self.length as u32) << 8 | u32::from(self.kind as u8)).to_be_bytes());
        octets[4..].copy_from_slice(&self.stream.to_be_bytes());
        octets
    }

    /// As it came in.
    pub fn read(octets: [u8; HEADER]) -> Result<Self, Violation> {
        let both = u64::from_be_bytes(octets);
        let (length, kind, stream) = ((both >> 40) as usize, (both >> 32) as u8, both as u32);
        let kind = Kind::of(kind).ok_or(Violation::UnknownKind(kind))?;
        let fits = match kind {
            Kind::Data => (1..=MAX_PAYLOAD).contains(&length),
            Kind::Open | Kind::Reset => length == 1,
            Kind::Credit => length == 4,
            Kind::Fin | Kind::Stop | Kind::GoAway | Kind::Ping | Kind::Pong => length == 0,
        };
        if !fits {
            return Err(Violation::Length(kind, length));
        }
        let is_about_the_link = matches!(kind, Kind::Ping | Kind::Pong);
        if kind != Kind::GoAway && is_about_the_link != (stream == 0) {
            return Err(Violation::Stream(kind, stream));
        }
        Ok(Self { kind, stream, length })
    }
}

impl Kind {
    fn of(octet: u8) -> Option<Self> {
        use Kind::{Credit, Data, Fin, GoAway, Open, Ping, Pong, Reset, Stop};
        [Open, Data, Fin, Stop, Reset, Credit, GoAway, Ping, Pong].into_iter().find(|kind| *kind as u8 == octet)
    }
}

impl Cause {
    /// One that this version does not know is a reset.
    pub fn of(octet: u8) -> Self {
        [Self::Refused, Self::Shed].into_iter().find(|cause| *cause as u8 == octet).unwrap_or(Self::Reset)
    }
}

/// What is spoken on a stream, as [`Kind::Open`] has it. HTTP/2 has connections of its own.
const SPOKEN: [(MeshProtocol, u8); 2] = [(MeshProtocol::Http1, 1), (MeshProtocol::Tcp, 3)];

/// As it goes out.
pub fn protocol_octet(protocol: MeshProtocol) -> u8 {
    SPOKEN.iter().find(|(known, _)| *known == protocol).expect("HTTP/2 goes over no link").1
}

/// The same, read.
pub fn protocol_of(octet: u8) -> Result<MeshProtocol, Violation> {
    SPOKEN.iter().find(|(_, known)| *known == octet).map(|(protocol, _)| *protocol).ok_or(Violation::UnknownProtocol(octet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_as_it_went() {
        for kind in [Kind::Open, Kind::Data, Kind::Fin, Kind::Stop, Kind::Reset, Kind::Credit, Kind::GoAway] {
            let length = match kind {
                Kind::Data => MAX_PAYLOAD,
                Kind::Open | Kind::Reset => 1,
                Kind::Credit => 4,
                _ => 0,
            };
            let header = Header { kind, stream: 0xfeed_beef, length };
            assert_eq!(Header::read(header.octets()), Ok(header));
        }
        assert_eq!(Header { kind: Kind::Data, stream: 1, length: 0x0102 }.octets(), [0, 1, 2, 2, 0, 0, 0, 1]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let read = |length: u8, kind: u8, stream: u8| Header::read([0, 0, length, kind, 0, 0, 0, stream]);
        assert_eq!(read(0, 10, 1), Err(Violation::UnknownKind(10)));
        assert_eq!(read(0, 0, 1), Err(Violation::UnknownKind(0)));
        assert_eq!(read(0, 2, 1), Err(Violation::Length(Kind::Data, 0)));
        assert_eq!(Header::read([1, 0, 1, 2, 0, 0, 0, 1]), Err(Violation::Length(Kind::Data, MAX_PAYLOAD + 1)));
        assert_eq!(read(2, 1, 1), Err(Violation::Length(Kind::Open, 2)));
        assert_eq!(read(1, 1, 0), Err(Violation::Stream(Kind::Open, 0)));
        assert_eq!(read(0, 8, 1), Err(Violation::Stream(Kind::Ping, 1)));
        assert_eq!(protocol_of(9), Err(Violation::UnknownProtocol(9)));
    }
}
