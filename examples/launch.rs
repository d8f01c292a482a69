//! Launches a command as a captive, with all that it starts, and reports how it ended: `launch COMMAND [ARG...]`.
//!
//! Kill this program in any way you like while the command runs: the command is gone as well, with every daemon of it.

use std::error::Error;
use std::io::{Write, stdout};
use std::time::Duration;

use captive::{Command, Containment};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().ok_or("usage: launch COMMAND [ARG...]")?;
    let captive = Command::new(program)
        .args(args)
        .containment(Containment::Tree)
        .spawn()?;
    let mechanism = captive.containment();
    writeln!(stdout(), "launched, pid {}, in a {mechanism}", captive.id())?;
    let report = captive.wait()?;
    writeln!(stdout(), "{}", report.status())?;
    if let Some(usage) = report.usage() {
        let (user, system) = (usage.user, usage.system);
        writeln!(stdout(), "{user:?} user, {system:?} system")?;
    }
    if !captive.wait_tree(Duration::from_secs(5))? {
        writeln!(stdout(), "something of it does not end after SIGKILL")?;
    }
    Ok(())
}
