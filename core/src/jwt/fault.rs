//! Why a token does not count.

use std::fmt;

/// Why a token does not count. Says nothing that stands in the token, but for its times.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TokenFault {
    /// The request has several fields that could bear it.
    Several,
    /// It is longer than [`TokenFault::LONGEST`].
    TooLong,
    /// It is not three parts of canonical base64url with JSON objects in them, as RFC 7515 has it; what is wrong.
    Malformed(&'static str),
    /// Its header asks for what must be understood (`crit`, `b64`), and is not.
    Critical,
    /// Its algorithm is none that is taken, or not one of the key's.
    Algorithm,
    /// No key of the issuer's has its `kid`, or fits its algorithm.
    UnknownKey,
    /// The signature is not the issuer's.
    Signature,
    /// It is for another audience.
    Audience,
    /// It has no `exp`.
    NoExpiry,
    /// It has expired, at this time: seconds since 1970.
    Expired(i64),
    /// It does not count before this time: seconds since 1970.
    NotYet(i64),
    /// The issuer's keys could not be fetched since this time, in seconds since 1970, and there are none to go by.
    NoKeys(i64),
    /// No `JwtIssuer` that the pod goes by is for the issuer that the clause names.
    UnknownIssuer,
    /// Nobody has looked.
    Unread,
}

impl TokenFault {
    /// The longest token that is looked at, in bytes.
    pub const LONGEST: usize = 8 << 10;

    /// A word for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Several => "several",
            Self::TooLong => "too-long",
            Self::Malformed(_) => "malformed",
            Self::Critical => "critical",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown-key",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::NoExpiry => "no-expiry",
            Self::Expired(_) => "expired",
            Self::NotYet(_) => "not-yet",
            Self::NoKeys(_) => "no-keys",
            Self::UnknownIssuer => "unknown-issuer",
            Self::Unread => "unread",
        }
    }

    /// What the caller, or an operator, could do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Several => "one token, in one field",
            Self::TooLong | Self::Malformed(_) | Self::Critical => "a token that can be read",
            Self::Algorithm | Self::UnknownKey | Self::Signature => "a token that is signed with a key of the issuer's",
            Self::Audience => "a token for one of the JwtIssuer's audiences",
            Self::NoExpiry => "a token that says when it expires",
            Self::Expired(_) | Self::NotYet(_) => "a token that is valid now",
            Self::NoKeys(_) => "the issuer's keys: see the sidecar's log for why they cannot be fetched",
            Self::UnknownIssuer => "a JwtIssuer for the issuer that the rule names",
            Self::Unread => "a request whose token was looked at",
        }
    }
}

impl fmt::Display for TokenFault {
    /// To be read after "the token".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Several => f.write_str("is not one: several fields could bear it"),
            Self::TooLong => write!(f, "is longer than {} bytes", Self::LONGEST),
            Self::Malformed(what) => write!(f, "cannot be read: {what}"),
            Self::Critical => f.write_str("asks for an extension that is not understood"),
            Self::Algorithm => f.write_str("is signed by an algorithm that is not taken"),
            Self::UnknownKey => f.write_str("is signed with a key that the issuer does not list"),
            Self::Signature => f.write_str("has a signature that is not the issuer's"),
            Self::Audience => f.write_str("is for another audience"),
            Self::NoExpiry => f.write_str("does not say when it expires"),
            Self::Expired(at) => write!(f, "has expired at {}", Utc(*at)),
            Self::NotYet(at) => write!(f, "is not valid before {}", Utc(*at)),
            Self::NoKeys(since) => write!(f, "cannot be verified: there have been no keys of the issuer's since {}", Utc(*since)),
            Self::UnknownIssuer => f.write_str("cannot be verified: no JwtIssuer is for the issuer"),
            Self::Unread => f.write_str("was not looked at"),
        }
    }
}

/// Seconds since 1970, as RFC 3339 writes them.
pub(super) struct Utc(pub(super) i64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0.div_euclid(86_400), self.0.rem_euclid(86_400));
        if !(-719_528..=2_932_896).contains(&days) {
            return write!(f, "{} s since 1970", self.0);
        }
        // Years begin in March here, so that the leap day is the last one. Eras of 400 years have as many days each.
        let shifted = days + 719_468;
        let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        let year = era * 400 + year + i64::from(month <= 2);
        let (hour, minute) = (second / 3_600, second / 60 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
    }
}
