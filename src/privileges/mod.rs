//! Who the process becomes: the user it drops to.

mod user;

pub use user::{User, UserError};
