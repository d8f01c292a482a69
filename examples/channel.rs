//! The parent's exit as an event: the program is told, and decides itself what follows.
use captive::exit_with_parent::ExitWithParent;
use std::io::{Write, stderr};

fn main() -> Result<(), captive::Error> {
    let (armed, parent) = ExitWithParent::new().channel()?;
    writeln!(stderr(), "{}", armed.report()).ok();
    parent.recv().ok(); // or in a select! beside the work
    writeln!(stderr(), "the parent is gone: flush and leave").ok();
    Ok(())
}
