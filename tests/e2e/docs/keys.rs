//! Compares the keys of a command's JSON with those of a table.

use std::collections::BTreeSet;

use serde_json::{Deserializer, Value};

use super::page::Key;

/// What is missing in the table or in the output, if something is.
pub fn difference(documented: &[Key], output: &str) -> Option<String> {
    let mut printed = BTreeSet::new();
    for value in Deserializer::from_str(output).into_iter::<Value>() {
        match value {
            Ok(value) => collect(&value, "", &mut printed),
            Err(error) => return Some(format!("this is no JSON ({error}): {output}")),
        }
    }
    if printed.is_empty() {
        return Some(format!("no keys in {output:?}"));
    }
    let is_known = |path: &str| documented.iter().any(|key| key.covers(path));
    let is_gone = |key: &&Key| !key.is_optional && !printed.iter().any(|path| key.covers(path));
    let gone: Vec<_> = documented
        .iter()
        .filter(is_gone)
        .map(|key| format!("  - `{}`", key.path))
        .collect();
    let new = printed
        .iter()
        .filter(|path| !is_known(path))
        .map(|path| format!("  + `{path}`"));
    let new: Vec<_> = new.collect();
    let lines = [gone, new].concat();
    (!lines.is_empty()).then(|| {
        format!(
            "the keys of the JSON are others than those in the table:\n{}\n{output}",
            lines.join("\n")
        )
    })
}

impl Key {
    /// Returns whether this row is about a path. A row `disks[].*` is about all keys below, which are those of another table.
    fn covers(&self, path: &str) -> bool {
        match self.path.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => self.path == path,
        }
    }
}

/// Collects the paths of all keys: `disks[].name`.
fn collect(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = match path {
                    "" => name.clone(),
                    _ => format!("{path}.{name}"),
                };
                keys.insert(path.clone());
                collect(value, &path, keys);
            }
        }
        Value::Array(values) => values
            .iter()
            .for_each(|value| collect(value, &format!("{path}[]"), keys)),
        _ => {}
    }
}
