//! As `launch`, on tokio: `launch_async COMMAND [ARG...]`. SIGTERM and SIGINT end the command in order.

use std::error::Error;
use std::io::{Write, stdout};
use std::time::Duration;

use captive::exit_with_parent::Signal;
use captive::launcher::{Event, tokio as captives};
use captive::{Command, Containment};

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().ok_or("usage: launch_async COMMAND [ARG...]")?;
    let mut command = Command::new(program);
    command.args(args).containment(Containment::Tree);
    let mut events = captives::events()?;
    events.signal(Signal::TERM)?;
    events.signal(Signal::INT)?;
    let captive = captives::spawn(command).await?;
    events.watch(&captive)?;
    let report = match events.recv().await {
        Event::Exited { report, .. } => report,
        other => {
            writeln!(stdout(), "{other:?}: ending it in order")?;
            captive.terminate(Duration::from_secs(5)).await?
        }
    };
    writeln!(stdout(), "{}", report.status())?;
    if !captive.wait_tree(Duration::from_secs(5)).await? {
        writeln!(stdout(), "something of it does not end after SIGKILL")?;
    }
    Ok(())
}
