//! The live view of a rotation at a terminal: what `keyward demo` and `keyward lifecycle watch` show.
//!
//! [`State`] is plain data, [`draw`] makes widgets of it and is pure, [`Screen`] owns the terminal and always puts it back. [`Run`] is a run as
//! the API shows it, with a sentence for everything in it. Where the state comes from is left to those who use this: no request is made here.

mod run;
mod say;
mod state;
mod tale;
mod terminal;
mod view;

pub use run::{Acknowledged, Begun, Consumer, Emergency, Evidence, Refused, Run, Version};
pub use say::{cause, laggard, one_line, waits_for};
pub use state::{Column, Holding, Holdings, Key, Mood, Note, Panel, Requests, Row, State};
pub use tale::Tale;
pub use terminal::{Input, Screen, is_interactive};
pub use view::{Look, draw};
