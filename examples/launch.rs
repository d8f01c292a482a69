//! Launches a command as a captive and reports how it ended: `launch COMMAND [ARG...]`.
//!
//! Kill this program in any way you like while the command runs: the command is gone as well.

use std::error::Error;
use std::io::{Write, stdout};

use captive::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().ok_or("usage: launch COMMAND [ARG...]")?;
    let captive = Command::new(program).args(args).spawn()?;
    writeln!(stdout(), "launched, pid {}", captive.id())?;
    let report = captive.wait()?;
    writeln!(stdout(), "{}", report.status())?;
    if let Some(usage) = report.usage() {
        let (user, system) = (usage.user, usage.system);
        writeln!(stdout(), "{user:?} user, {system:?} system")?;
    }
    Ok(())
}
