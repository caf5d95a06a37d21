//! Who is refused though its chain is good.

use std::collections::HashSet;

use weft_core::SpiffeId;
use weft_core::identity::InvalidName;
use weft_proto::v1;

use crate::leaf::LeafInfo;

/// Why a text is no serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no serial number: write it in hexadecimal, 1 to 40 digits, with or without colons")]
pub struct InvalidSerial(String);

/// A certificate's serial number in the one form in which they are compared: hexadecimal, lower case, without leading zeros.
///
/// # Errors
///
/// Where it is none (RFC 5280, section 4.1.2.2: 20 bytes at most).
pub fn serial(text: &str) -> Result<String, InvalidSerial> {
    let digits: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    if digits.is_empty() || digits.len() > 40 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(InvalidSerial(text.chars().take(80).collect()));
    }
    Ok(significant(&digits).to_owned())
}

fn significant(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    }
}

/// Identities and certificates that nobody lets in or calls. Asking costs the same however many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denied {
    identities: HashSet<SpiffeId>,
    serials: HashSet<String>,
}

impl Denied {
    /// These, with serial numbers as [`serial`] gives them.
    pub fn new(identities: impl IntoIterator<Item = SpiffeId>, serials: impl IntoIterator<Item = String>) -> Self {
        Self { identities: identities.into_iter().collect(), serials: serials.into_iter().collect() }
    }

    /// Whether an identity is refused, whatever certificate it shows.
    pub fn has_identity(&self, id: &SpiffeId) -> bool {
        // Most meshes deny nobody, and then nothing is hashed.
        !self.identities.is_empty() && self.identities.contains(id)
    }

    /// Whether a certificate is refused.
    pub fn has(&self, leaf: &LeafInfo) -> bool {
        self.has_identity(&leaf.id) || (!self.serials.is_empty() && self.serials.contains(significant(&leaf.serial)))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.identities.len() + self.serials.len()
    }

    /// Whether nobody is denied.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<&Denied> for v1::Denied {
    fn from(denied: &Denied) -> Self {
        let mut wire = Self {
            identities: denied.identities.iter().map(ToString::to_string).collect(),
            serials: denied.serials.iter().cloned().collect(),
        };
        // The same set is the same message, so that it is not sent again.
        wire.identities.sort_unstable();
        wire.serials.sort_unstable();
        wire
    }
}

impl TryFrom<&v1::Denied> for Denied {
    type Error = InvalidName;
    fn try_from(wire: &v1::Denied) -> Result<Self, InvalidName> {
        let identities = wire.identities.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        Ok(Self { identities, serials: wire.serials.iter().map(|s| significant(s).to_owned()).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_compared_in_one_form() {
        for (text, read) in [("00:AB:0c", "ab0c"), ("ab0c", "ab0c"), ("0", "0"), ("00", "0")] {
            assert_eq!(serial(text).expect("good"), read);
        }
        for bad in ["", ":", "xyz", "0x12", &"a".repeat(41), "-1", " 1"] {
            assert!(serial(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn an_identity_or_a_certificate_is_denied() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("valid");
        let leaf = |id: &SpiffeId, serial: &str| LeafInfo {
            id: id.clone(),
            pod: None,
            serial: serial.into(),
            not_before: 0,
            not_after: 1,
        };
        let other: SpiffeId = "spiffe://cluster.local/ns/shop/sa/db".parse().expect("valid");
        let denied = Denied::new([id.clone()], [serial("0AB0").expect("good")]);
        assert!(denied.has(&leaf(&id, "01")) && denied.has(&leaf(&other, "000ab0")) && !denied.has(&leaf(&other, "01")));
        let wire = v1::Denied::from(&denied);
        assert_eq!(Denied::try_from(&wire).expect("good"), denied);
        assert!(!Denied::default().has(&leaf(&id, "01")) && Denied::default().is_empty());
    }
}
