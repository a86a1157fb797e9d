//! Duties: acts on the world, owed in the commit that decides them, performed at least once, settled in a second commit.
//!
//! One table, ordered by due time, replaces outbox, lease queue, schedule and timers. The kernel runs it; rooms only owe and settle.

use base::{MountId, Refusal, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::{Key, Prefix, Scope, Tx};

use crate::BoxFuture;

/// The act, holding everything it needs; no transaction is open while it runs.
pub type Work = BoxFuture<'static, Outcome>;

/// Names a duty for ever: owner and a key that is unique for the owner (`run/phase/n`), so owing it twice is owing it once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DutyKey {
    /// The mount that owes it.
    pub owner: MountId,
    /// Unique within the owner. No NUL.
    pub key: String,
}

/// A duty as its owner states it.
#[derive(Clone, Debug)]
pub struct NewDuty {
    /// Unique within the owner. No NUL.
    pub key: String,
    /// The owner's own word for it.
    pub kind: &'static str,
    /// When it is due; now for acts that are wanted at once.
    pub due: Timestamp,
    /// Whether it touches the world. A timer does not: its performance is nothing but its time having come.
    pub act: bool,
    /// Duties of one lane are performed one after another (the name of a target).
    pub lane: String,
    /// What the owner needs to perform it: identifiers, never values.
    pub payload: Box<RawValue>,
}

/// A duty in the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Duty {
    /// Its name.
    pub id: DutyKey,
    /// The owner's own word for it.
    pub kind: String,
    /// When it is due.
    pub due: Timestamp,
    /// When it was owed.
    pub owed: Timestamp,
    /// Whether it touches the world.
    pub act: bool,
    /// The lane it is performed in.
    pub lane: String,
    /// Performances so far that ended without being settled.
    pub attempts: u32,
    /// Why the last performance was not the end of it; empty before the first.
    pub last: String,
    /// Why it is parked; empty while it is not.
    pub parked: String,
    /// The process that owed it or began it last: another one found it after a restart.
    pub boot: String,
    /// The request that waits for it, or did: the records of what becomes of it name it. Empty for none.
    pub request: String,
    /// What the owner needs.
    pub payload: Box<RawValue>,
}

/// What came of an act.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Done, with what was seen.
    Done(Box<RawValue>),
    /// The world said no. `code` is the target's own (`28P01`), `text` is for the operator and holds no secret.
    Refused {
        /// The target's code.
        code: String,
        /// One sentence.
        text: String,
    },
    /// Nobody knows whether it was done. A state, resolved by probing, never by guessing.
    Unknown {
        /// One sentence.
        text: String,
    },
}

impl Outcome {
    /// Done, having seen `value`.
    ///
    /// Falls back to [`Outcome::Unknown`] when `value` cannot be written as JSON.
    pub fn done(value: &impl Serialize) -> Self {
        match serde_json::value::to_raw_value(value) {
            Ok(raw) => Self::Done(raw),
            Err(_) => Self::Unknown { text: "the outcome could not be written".into() },
        }
    }
}

const SCOPE: Scope = Scope::KERNEL;

/// The key of a duty in the due-time table.
#[must_use]
pub fn due_key(duty: &Duty) -> Key {
    Key::new(SCOPE, "due", &[&hex(duty.due.0), &hex(duty.id.owner.0), &duty.id.key])
}

/// The key that finds a duty by its name; holds its due time.
#[must_use]
pub fn name_key(id: &DutyKey) -> Key {
    Key::new(SCOPE, "duty", &[&hex(id.owner.0), &id.key])
}

/// All duties, the earliest first.
#[must_use]
pub fn all() -> Prefix {
    Prefix::new(SCOPE, "due", &[])
}

/// Owes `duty` on behalf of `owner` in this transaction. Owing a name that is already owed changes nothing.
///
/// # Errors
/// When the store cannot be read or written.
pub fn owe(tx: &mut Tx, owner: MountId, duty: NewDuty, boot: &str) -> Result<DutyKey, Refusal> {
    let id = DutyKey { owner, key: duty.key };
    if find(tx, &id)?.is_none() {
        let duty = Duty {
            id: id.clone(),
            kind: duty.kind.to_owned(),
            due: duty.due,
            owed: tx.now(),
            act: duty.act,
            lane: duty.lane,
            attempts: 0,
            last: String::new(),
            parked: String::new(),
            boot: boot.to_owned(),
            request: String::new(),
            payload: duty.payload,
        };
        put(tx, &duty)?;
    }
    Ok(id)
}

/// Notes which request waits for the duty.
///
/// # Errors
/// When the store cannot be read or written.
pub fn await_for(tx: &mut Tx, id: &DutyKey, request: &str) -> Result<(), Refusal> {
    if let Some(mut duty) = find(tx, id)? {
        request.clone_into(&mut duty.request);
        put(tx, &duty)?;
    }
    Ok(())
}

/// Writes a duty at its due time.
///
/// # Errors
/// When the store cannot be written.
pub fn put(tx: &mut Tx, duty: &Duty) -> Result<(), Refusal> {
    tx.write(&name_key(&duty.id), &duty.due)?;
    tx.write(&due_key(duty), duty)?;
    Ok(())
}

/// The duty of that name, if it is still owed.
///
/// # Errors
/// When the store cannot be read.
pub fn find(tx: &mut Tx, id: &DutyKey) -> Result<Option<Duty>, Refusal> {
    let Some(due) = tx.read::<Timestamp>(&name_key(id))? else { return Ok(None) };
    let key = Key::new(SCOPE, "due", &[&hex(due.0), &hex(id.owner.0), &id.key]);
    Ok(tx.read::<Duty>(&key)?)
}

/// Removes a duty: settled, or withdrawn by its owner. Removing one that is not owed changes nothing.
///
/// # Errors
/// When the store cannot be read or written.
pub fn remove(tx: &mut Tx, id: &DutyKey) -> Result<(), Refusal> {
    if let Some(due) = tx.read::<Timestamp>(&name_key(id))? {
        tx.delete(&Key::new(SCOPE, "due", &[&hex(due.0), &hex(id.owner.0), &id.key]))?;
        tx.delete(&name_key(id))?;
    }
    Ok(())
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}
