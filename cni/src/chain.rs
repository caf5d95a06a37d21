//! The plugin's entry in a network configuration list, as text in and text out. Pure: nothing here reads a file.
//!
//! The list belongs to somebody else. So nothing of it is written anew: the entry is put into the text and cut out of it again,
//! and what is around it stays as it was, byte by byte.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::PLUGIN;

/// Says in a list that was made by us that it was: beside `name` and `plugins`, runtimes read nothing that has another name.
const MADE_BY: &str = "madeBy";

/// Why a text is no configuration that a plugin can join.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// It is not JSON, or not the JSON of a network configuration.
    #[error("it is no network configuration: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A list without a plugin, whose result could not be passed on.
    #[error("it has no plugins to be chained to")]
    NoPlugins,
    /// A configuration without a name or a type.
    #[error("it has no {0:?}")]
    Lacks(&'static str),
}

/// What the runtime hands to the plugin at each call, besides its own: see [`crate::plugin::NetConf`].
pub fn entry(socket: &str, exempt: &[String]) -> Value {
    json!({ "type": PLUGIN, "socket": socket, "exempt": exempt })
}

/// The list with `entry` in it, once: where it was, else last. None where that is how it is already.
pub fn with_entry(list: &str, entry: &Value) -> Result<Option<String>, ChainError> {
    let plugins = Plugins::of(list)?;
    let wanted = entry.to_string();
    let ours = plugins.ours();
    match ours.split_first() {
        None => {
            let last = plugins.elements.last().ok_or(ChainError::NoPlugins)?;
            Ok(Some(spliced(list, last.end..last.end, &format!(", {wanted}"))))
        }
        // A second one, which nobody should have written, would apply everything twice.
        Some(_) if ours.len() > 1 => with_entry(&without_entry(list)?.unwrap_or_default(), entry),
        Some((only, _)) => {
            let range = plugins.elements[*only].clone();
            let is: Value = serde_json::from_str(&list[range.clone()])?;
            Ok((is != *entry).then(|| spliced(list, range, &wanted)))
        }
    }
}

/// The list without any entry of ours. None where that is how it is already.
pub fn without_entry(list: &str) -> Result<Option<String>, ChainError> {
    let mut text = None;
    // One at a time, since a cut moves what is behind it.
    loop {
        let now = text.as_deref().unwrap_or(list);
        let plugins = Plugins::of(now)?;
        let Some(index) = plugins.ours().pop() else { return Ok(text) };
        let element = plugins.elements[index].clone();
        let cut = match (index.checked_sub(1), plugins.elements.get(index + 1)) {
            (Some(before), _) => plugins.elements[before].end..element.end,
            (None, Some(after)) => element.start..after.start,
            (None, None) => return Ok(Some(spliced(now, element, ""))),
        };
        text = Some(spliced(now, cut, ""));
    }
}

/// A list of the one plugin that `configuration` is for, and ours behind it: a single configuration has no room for a second.
pub fn list_of(configuration: &str, entry: &Value) -> Result<String, ChainError> {
    let fields: Map<String, Value> = serde_json::from_str(configuration)?;
    let text = |key| fields.get(key).and_then(Value::as_str);
    let name = text("name").ok_or(ChainError::Lacks("name"))?;
    text("type").ok_or(ChainError::Lacks("type"))?;
    let plugins = json!([fields, entry]);
    let made_by = (MADE_BY.to_owned(), json!(PLUGIN));
    let mut list = Map::from_iter([("name".to_owned(), json!(name)), ("plugins".to_owned(), plugins), made_by]);
    if let Some(version) = text("cniVersion") {
        list.insert("cniVersion".to_owned(), json!(version));
    }
    Ok(format!("{:#}\n", Value::Object(list)))
}

/// Whether a text is a list that [`list_of`] made.
pub fn is_made(list: &str) -> bool {
    serde_json::from_str::<Value>(list).is_ok_and(|list| list[MADE_BY] == PLUGIN)
}

/// Where the plugins of a list stand in its text.
struct Plugins<'a> {
    text: &'a str,
    elements: Vec<Range<usize>>,
}

impl<'a> Plugins<'a> {
    fn of(text: &'a str) -> Result<Self, ChainError> {
        #[derive(Deserialize)]
        struct List<'a> {
            #[serde(borrow)]
            plugins: Vec<&'a RawValue>,
        }
        let list: List<'a> = serde_json::from_str(text)?;
        // Raw values are pieces of the text that they were read from.
        let place = |raw: &RawValue| {
            let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            start..start + raw.get().len()
        };
        let elements: Vec<Range<usize>> = list.plugins.into_iter().map(place).collect();
        if elements.is_empty() { Err(ChainError::NoPlugins) } else { Ok(Self { text, elements }) }
    }

    /// Which of them are ours.
    fn ours(&self) -> Vec<usize> {
        #[derive(Deserialize)]
        struct Typed {
            r#type: String,
        }
        let is_ours = |element: &Range<usize>| {
            serde_json::from_str::<Typed>(&self.text[element.clone()]).is_ok_and(|plugin| plugin.r#type == PLUGIN)
        };
        (0..self.elements.len()).filter(|index| is_ours(&self.elements[*index])).collect()
    }
}

fn spliced(text: &str, range: Range<usize>, with: &str) -> String {
    [&text[..range.start], with, &text[range.end..]].concat()
}

#[cfg(test)]
mod tests;
