//! The parent's exit as an event: the program is told, and decides itself what follows.
use captive::exit_with_parent::ExitWithParent;

fn main() -> Result<(), captive::Error> {
    let (armed, parent) = ExitWithParent::new().channel()?;
    eprintln!("{}", armed.report());
    parent.recv().ok(); // or in a select! beside the work
    eprintln!("the parent is gone: flush and leave");
    Ok(())
}
