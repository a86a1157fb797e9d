//! Policies: stored as the text that was written, compiled once for each distinct set of texts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base::Refusal;
use policy::{Policy, PolicyName, Rules};
use serde::{Deserialize, Serialize};
use store::{Key, Prefix, Scope, Tx};

/// Compiled sets that are kept.
pub const CACHE_MAX: usize = 4_096;
/// Policies that are listed at most.
pub const LIST_MAX: usize = 100_000;

#[derive(Serialize, Deserialize)]
struct Record {
    text: String,
}

fn key(name: &PolicyName) -> Key {
    Key::new(Scope::KERNEL, "policy", &[name.as_str()])
}

/// The text of a policy.
///
/// # Errors
/// When the store cannot be read.
pub fn text(tx: &mut Tx, name: &PolicyName) -> Result<Option<String>, Refusal> {
    Ok(tx.read::<Record>(&key(name))?.map(|r| r.text))
}

/// Writes a policy after reading it once: a text that does not parse is never stored.
///
/// # Errors
/// 400 with what is wrong in the text.
pub fn put(tx: &mut Tx, name: &PolicyName, text: &str) -> Result<(), Refusal> {
    Policy::parse(name.clone(), text).map_err(|e| Refusal::invalid(e.to_string()))?;
    Ok(tx.write(&key(name), &Record { text: text.to_owned() })?)
}

/// Removes a policy. Removing one that is not there changes nothing.
///
/// # Errors
/// 400 for `root` and `default`.
pub fn remove(tx: &mut Tx, name: &PolicyName) -> Result<(), Refusal> {
    match name.as_str() {
        "root" | "default" => Err(Refusal::invalid(format!("cannot delete \"{name}\" policy"))),
        _ => Ok(tx.delete(&key(name))?),
    }
}

/// The names of all policies, `root` included.
///
/// # Errors
/// When the store cannot be read.
pub fn names(tx: &mut Tx) -> Result<Vec<String>, Refusal> {
    let mut names = tx.list(&Prefix::new(Scope::KERNEL, "policy", &[]), None, LIST_MAX)?;
    names.push("root".into());
    names.sort();
    Ok(names)
}

/// Compiled sets, by the hash of the texts they were compiled from: exact, whatever was written meanwhile.
#[derive(Default)]
pub struct Cache(Mutex<HashMap<[u8; 32], Arc<Rules>, std::hash::BuildHasherDefault<std::hash::DefaultHasher>>>);

impl Cache {
    /// The rules of a token with these policies. A name without a policy grants nothing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn rules(&self, tx: &mut Tx, names: &[String]) -> Result<Arc<Rules>, Refusal> {
        let mut hash = crypto::hash::Sha256::new();
        let mut texts = Vec::with_capacity(names.len());
        for name in names {
            if name == "root" {
                return Ok(Arc::new(Rules::root()));
            }
            let Ok(name) = PolicyName::parse(name) else { continue };
            let Some(bytes) = tx.get(&key(&name))? else { continue };
            hash.update(name.as_str().as_bytes());
            hash.update(&[0]);
            hash.update(&crypto::hash::sha256(bytes.expose()));
            texts.push((name, bytes));
        }
        let id = hash.finish();
        if let Some(rules) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(Arc::clone(rules));
        }
        let mut policies = Vec::with_capacity(texts.len());
        for (name, bytes) in texts {
            let record: Record = serde_json::from_slice(bytes.expose())
                .map_err(|_| Refusal::internal(format!("the record of policy `{name}` could not be read")))?;
            let policy = Policy::parse(name.clone(), &record.text)
                .map_err(|e| Refusal::internal(format!("stored policy `{name}` does not parse: {e}")))?;
            policies.push(policy);
        }
        let rules = Arc::new(Rules::compile(policies.iter()));
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_MAX {
            cache.clear();
        }
        cache.insert(id, Arc::clone(&rules));
        Ok(rules)
    }
}
