//! A configuration file with its overrides, and the place that every value came from.
//!
//! The way of a value: YAML text, then `--set key=value`, then other names of the same key brought
//! to the canonical one, then a typed section. The place (`file:line`, or the `--set` itself) stays
//! known to the end, so that whatever is wrong is reported where the user wrote it.

use super::aliases;
use super::sections::Section;
use super::typed::{self, Misfit, Refusal};
use super::yaml::{self, join};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// A configuration before it has types.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    name: String,
    tree: Map<String, Value>,
    /// Dotted key to where it was written.
    places: BTreeMap<String, String>,
}

impl ConfigFile {
    /// Reads a file and applies `--set` overrides (`dotted.key=value`), later ones last. All errors
    /// here are exit code 2.
    pub fn load(path: &Path, overrides: &[String]) -> Result<ConfigFile> {
        let bytes = std::fs::read(path).map_err(|e| {
            Error::usage(format!("cannot read the configuration: {e}"))
                .at(path.display())
                .hint("check the path; relative paths start where the command was given")
        })?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()]
                .iter()
                .filter(|b| **b == b'\n')
                .count();
            Error::usage("the configuration is not UTF-8 text")
                .at(format_args!("{}:{line}", path.display()))
        })?;
        Self::from_text(&path.display().to_string(), &text, overrides)
    }

    /// The same from a text; `name` stands for the file in messages.
    pub fn from_text(name: &str, text: &str, overrides: &[String]) -> Result<ConfigFile> {
        let document = yaml::parse(text, name)?;
        let tree = match document.value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            other => {
                let what =
                    format!("a map of sections is needed, found {}", typed::describe(&other));
                return Err(Error::usage(what).at(name));
            }
        };
        let places =
            document.lines.into_iter().map(|(key, line)| (key, format!("{name}:{line}"))).collect();
        let mut config = ConfigFile { name: name.to_string(), tree, places };
        config.canonicalise()?;
        config.apply(overrides)?;
        // A `--set` may bring a whole section, with other names in it.
        config.canonicalise()?;
        config.convert()?;
        Ok(config)
    }

    /// The recipe's name.
    pub fn recipe(&self) -> Result<&str> {
        match self.tree.get("recipe") {
            Some(Value::String(name)) => Ok(name),
            Some(other) => {
                let what = format!("recipe: a name is needed, found {}", typed::describe(other));
                Err(Error::usage(what).at(self.place("recipe")))
            }
            None => Err(Error::usage("the configuration names no recipe")
                .at(&self.name)
                .hint("begin the file with a line such as `recipe: ptm_mamba`")),
        }
    }

    /// Reads a section into its struct, whose serde attributes say what is allowed and what the
    /// defaults are. A section that is absent or empty is all defaults.
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        typed::read(&self.section_value(name), name).map_err(|misfit| self.refuse(&misfit))
    }

    /// Reads a section without the keys in `others`, which its reader takes apart by itself.
    pub fn section_without<T: DeserializeOwned>(&self, name: &str, others: &[&str]) -> Result<T> {
        let mut value = self.section_value(name);
        if let Some(map) = value.as_object_mut() {
            map.retain(|key, _| !others.contains(&key.as_str()));
        }
        typed::read(&value, name).map_err(|misfit| self.refuse(&misfit))
    }

    /// Reads a shared section and checks its ranges.
    pub fn read<T: Section>(&self) -> Result<T> {
        let section: T = self.section(T::NAME)?;
        self.check(&section)?;
        Ok(section)
    }

    /// Reads a section that holds both a shared struct's keys and a recipe's own (`Own` must be a
    /// plain struct), and checks the shared ranges.
    pub fn read_with<T: Section, Own: DeserializeOwned>(&self) -> Result<(T, Own)> {
        let shared = typed::known_keys::<T>();
        let own = typed::known_keys::<Own>();
        let map: Map<String, Value> = self.section(T::NAME)?;
        let allowed: Vec<&'static str> = shared.iter().chain(own).copied().collect();
        if let Some(key) = map.keys().find(|key| !allowed.contains(&key.as_str())) {
            let refusal = Refusal::UnknownKey { key: key.clone(), allowed };
            return Err(self.refuse(&Misfit { key: join(T::NAME, key), refusal }));
        }
        let (first, second): (Map<_, _>, Map<_, _>) =
            map.into_iter().partition(|(key, _)| shared.contains(&key.as_str()));
        let refuse = |misfit| self.refuse(&misfit);
        let section: T = typed::read(&Value::Object(first), T::NAME).map_err(refuse)?;
        self.check(&section)?;
        let own = typed::read(&Value::Object(second), T::NAME).map_err(refuse)?;
        Ok((section, own))
    }

    /// Gives a key the recipe's default where the user gave none.
    pub fn set_default(&mut self, key: &str, value: Value) -> Result<()> {
        if self.lookup(key).is_some() {
            return Ok(());
        }
        self.assign(key, value, "the recipe's defaults")
    }

    /// This configuration with the keys of section `over` put in the place of `onto`'s.
    pub fn overlaid(&self, onto: &str, over: &str) -> ConfigFile {
        let mut all = self.clone();
        let Some(Value::Object(keys)) = self.tree.get(over) else { return all };
        let below = all.tree.entry(onto).or_insert_with(|| Value::Object(Map::new()));
        if !below.is_object() {
            // A section that is no map is refused when it is read.
            return all;
        }
        for (key, value) in keys {
            below[key.as_str()] = value.clone();
            all.places.insert(join(onto, key), self.place(&join(over, key)));
        }
        all
    }

    /// Refuses sections that a recipe does not have; `recipe` itself is always known.
    pub fn only_sections(&self, known: &[&'static str]) -> Result<()> {
        let Some(name) = self.tree.keys().find(|k| *k != "recipe" && !known.contains(&k.as_str()))
        else {
            return Ok(());
        };
        let what = format!("unknown section {name}{}", typed::suggest(name, known));
        let error = Error::usage(what).at(self.place(name));
        Err(match self.tree[name] {
            Value::Object(_) => error,
            _ => error.hint("a key stands in its section, such as training.lr"),
        })
    }

    /// Where a dotted key was written: `file:line`, the `--set`, or the nearest thing around it.
    pub fn place(&self, key: &str) -> String {
        let mut key = key;
        loop {
            if let Some(place) = self.places.get(key) {
                return place.clone();
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return self.name.clone(),
            }
        }
    }

    /// Everything as read, names canonical, before types and defaults.
    pub fn tree(&self) -> &Map<String, Value> {
        &self.tree
    }

    fn section_value(&self, name: &str) -> Value {
        match self.tree.get(name) {
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(value) => value.clone(),
        }
    }

    fn refuse(&self, misfit: &Misfit) -> Error {
        Error::usage(misfit.to_string()).at(self.place(&misfit.key))
    }

    fn check<T: Section>(&self, section: &T) -> Result<()> {
        section.check().map_err(|fault| {
            let place = self.place(fault.key);
            Error::usage(format!("{}: {}", fault.key, fault.what)).at(place)
        })
    }

    fn lookup(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = self.tree.get(parts.next()?);
        parts.fold(first, |value, part| value?.as_object()?.get(part))
    }

    /// Sets a dotted key, making the maps on the way.
    fn assign(&mut self, key: &str, value: Value, place: &str) -> Result<()> {
        let parts: Vec<&str> = key.split('.').collect();
        let Some((last, path)) = parts.split_last() else {
            return Err(Error::bug("an empty key was assigned"));
        };
        let mut map = &mut self.tree;
        let mut so_far = String::new();
        for part in path {
            so_far = join(&so_far, part);
            let slot = map.entry(*part).or_insert(Value::Null);
            if slot.is_null() {
                *slot = Value::Object(Map::new());
                self.places.insert(so_far.clone(), place.to_string());
            }
            map = match slot {
                Value::Object(inner) => inner,
                other => {
                    let found = typed::describe(other);
                    let what =
                        format!("{so_far} holds {found}, not keys ({})", self.place(&so_far));
                    return Err(Error::usage(what).at(place));
                }
            };
        }
        map.insert(last.to_string(), value);
        self.forget(key);
        self.places.insert(key.to_string(), place.to_string());
        Ok(())
    }

    /// Takes a dotted key out of the tree.
    fn take(&mut self, key: &str) -> Option<Value> {
        let (path, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut map = &mut self.tree;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            map = map.get_mut(part)?.as_object_mut()?;
        }
        let value = map.shift_remove(last)?;
        self.forget(key);
        Some(value)
    }

    /// Forgets the places of a key and of all below it.
    fn forget(&mut self, key: &str) {
        let below = |k: &str| {
            k.strip_prefix(key).is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']))
        };
        self.places.retain(|k, _| !below(k));
    }

    /// Brings every other name to its canonical one; two names of one thing are refused.
    fn canonicalise(&mut self) -> Result<()> {
        let mut keys: Vec<String> = Vec::new();
        for (name, value) in &self.tree {
            keys.push(name.clone());
            let inner = value.as_object().into_iter().flat_map(Map::keys);
            keys.extend(inner.map(|key| join(name, key)));
        }
        let mut given: BTreeMap<String, &String> = BTreeMap::new();
        let mut renames = Vec::new();
        for key in &keys {
            let canonical = aliases::canonical(key).unwrap_or(key.clone());
            if let Some(other) = given.insert(aliases::thing(&canonical).to_string(), key) {
                return Err(both_given((key, &self.place(key)), (other, &self.place(other))));
            }
            if canonical != *key {
                renames.push((key, canonical));
            }
        }
        for (key, canonical) in renames {
            let place = self.place(key);
            if let Some(value) = self.take(key) {
                self.assign(&canonical, value, &place)?;
            }
        }
        Ok(())
    }

    /// Applies overrides in their order; the same key may come again, under one name.
    fn apply(&mut self, overrides: &[String]) -> Result<()> {
        let mut given: BTreeMap<String, (String, String)> = BTreeMap::new();
        for text in overrides {
            let place = format!("--set {text}");
            let (key, value) = parse_override(text)?;
            let canonical = aliases::canonical(&key).unwrap_or(key.clone());
            let thing = aliases::thing(&canonical).to_string();
            // What the file says of the same thing, under whichever name, gives way.
            for name in aliases::names_of(&thing) {
                self.take(name);
            }
            self.assign(&canonical, value, &place)?;
            let before = given.insert(thing, (key.clone(), place.clone()));
            if let Some((other, other_place)) = before.filter(|(other, _)| *other != key) {
                return Err(both_given((&key, &place), (&other, &other_place)));
            }
        }
        Ok(())
    }

    /// Replaces settings that are another way to say a canonical one with a converted value.
    fn convert(&mut self) -> Result<()> {
        for (from, to, convert) in aliases::CONVERSIONS {
            let place = self.place(from);
            let Some(value) = self.take(from) else {
                continue;
            };
            let converted = convert(&value, &self.tree).map_err(|what| {
                Error::usage(format!("{from}: {what}, found {}", typed::describe(&value)))
                    .at(&place)
            })?;
            for (key, value) in std::iter::once((*to, converted.value)).chain(converted.implied) {
                if key == *to || self.lookup(key).is_none() {
                    self.assign(key, value, &place)?;
                }
            }
        }
        Ok(())
    }
}

/// Refuses two names of one setting; each is a key and its place.
fn both_given(a: (&str, &str), b: (&str, &str)) -> Error {
    Error::usage(format!("{} and {} ({}) are two names of one setting; keep one", a.0, b.0, b.1))
        .at(a.1)
}

/// Splits `dotted.key=value` and reads the value as a YAML scalar, `[list]` or `{map}`.
fn parse_override(text: &str) -> Result<(String, Value)> {
    let place = format!("--set {text}");
    let hint = "write it as --set training.lr=2e-4, without spaces around the =";
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::usage("an override needs a =").at(place).hint(hint));
    };
    if key.split('.').any(|part| part.is_empty() || part.contains(char::is_whitespace)) {
        return Err(Error::usage("the key must be names joined by dots").at(place).hint(hint));
    }
    let parsed = yaml::parse_inline(value, &place)?;
    let is_flow = value.trim_start().starts_with(['[', '{']);
    if (parsed.is_object() || parsed.is_array()) && !is_flow {
        return Err(Error::usage("the value reads as a map or list, not as a text")
            .at(place)
            .hint("put quotes within the quotes: --set 'run.name=\"a: b\"'"));
    }
    Ok((key.to_string(), parsed))
}
