//! Every call, every answer, every part: no particular outcome, but none that is wrong.

use super::calls::{CALLS, Call};
use super::*;

pub fn tests() -> Vec<Trial> {
    CALLS
        .iter()
        .map(|call| {
            let name = format!("degraded::matrix::{}", call.name);
            test(&name, &[Need::Long, Need::Root, Need::Cgroups], || {
                each(*call)
            })
        })
        .collect()
}

const ANSWERS: [Answer; 4] = [
    Answer::Errno(libc::ENOSYS as u32),
    Answer::Errno(libc::EPERM as u32),
    Answer::Trap,
    Answer::Kill,
];

fn each(call: Call) -> Outcome {
    let mut wrong = Vec::new();
    for answer in ANSWERS {
        for part in PARTS {
            // tokio has no error for a thread that cannot be made, which glibc does not make without clone3 where that is
            // EPERM: it panics.
            if call.name == "clone3" && part.name == "tokio" {
                continue;
            }
            let rule = call.answering(answer).to_string();
            if let Err(error) = see(&rule, part).and_then(|seen| nothing_is_wrong(&seen)) {
                wrong.push(format!("{answer:?}, {}: {error}", part.name));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
