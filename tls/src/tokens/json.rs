//! JSON that two readers cannot take for two things: no name twice, no depth without end, nothing behind it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use weft_core::jwt::Claim;

/// How deep values may lie in each other.
const DEEPEST: u8 = 16;

/// Reads a text; what is wrong, where it is none, has nothing of the text.
pub fn read(text: &[u8]) -> Result<Claim, &'static str> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = Value { left: DEEPEST }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    read.map_err(|e| {
        let said = e.to_string();
        [TWICE, DEEP].into_iter().find(|known| said.starts_with(known)).unwrap_or("it is not JSON")
    })
}

const TWICE: &str = "a member stands twice";
const DEEP: &str = "values lie too deep in each other";

#[derive(Clone, Copy)]
struct Value {
    left: u8,
}

impl Value {
    fn below<E: Error>(self) -> Result<Self, E> {
        self.left.checked_sub(1).map(|left| Self { left }).ok_or_else(|| E::custom(DEEP))
    }
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Claim;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Claim, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Claim;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Claim, E> {
        Ok(Claim::Null)
    }

    fn visit_bool<E: Error>(self, is: bool) -> Result<Claim, E> {
        Ok(Claim::Bool(is))
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<Claim, E> {
        Ok(Claim::Int(n))
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<Claim, E> {
        Ok(i64::try_from(n).map_or(Claim::Float(n as f64), Claim::Int))
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<Claim, E> {
        Ok(Claim::Float(n))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Claim, E> {
        Ok(Claim::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Claim, A::Error> {
        let below = self.below()?;
        let mut list = Vec::new();
        while let Some(value) = from.next_element_seed(below)? {
            list.push(value);
        }
        Ok(Claim::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Claim, A::Error> {
        let below = self.below()?;
        let mut members: Vec<(Box<str>, Claim)> = Vec::new();
        while let Some(name) = from.next_key::<String>()? {
            members.push((name.into(), from.next_value_seed(below)?));
        }
        let mut names: Vec<&str> = members.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(A::Error::custom(TWICE));
        }
        Ok(Claim::Object(members))
    }
}
