//! The table of docs/peers.md, and its copy in the README.

use std::fs;
use std::path::Path;

use super::Fallible;

/// One cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    /// The question makes no sense there: `-`.
    Absent,
}

/// The table as it is written.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<(String, Vec<Answer>)>,
}

impl Table {
    /// That of docs/peers.md.
    pub(super) fn read() -> Fallible<Self> {
        Self::parse(&between(&file("docs/peers.md")?, "table")?)
    }

    pub(super) fn parse(lines: &[String]) -> Fallible<Self> {
        let [header, rule, rows @ ..] = lines else {
            return Err("no table between the markers".into());
        };
        let header = cells(header)?;
        let ruled = cells(rule)?.iter().all(|cell| cell == "---");
        ensure!(ruled, "no rule under the table's header: {rule}");
        let mut read = Vec::new();
        for row in rows {
            let mut cells = cells(row)?;
            ensure!(cells.len() == header.len(), "a ragged row: {row}");
            let name = cells.remove(0);
            let answers = cells.iter().map(|cell| match cell.as_str() {
                "yes" => Ok(Answer::Yes),
                "no" => Ok(Answer::No),
                "-" => Ok(Answer::Absent),
                other => Err(format!("{name}: {other:?} is not yes, no or -")),
            });
            read.push((name.clone(), answers.collect::<Result<_, _>>()?));
        }
        Ok(Self { header, rows: read })
    }

    /// The cells of one row.
    pub(super) fn row(&self, name: &str) -> Fallible<&[Answer]> {
        let found = self.rows.iter().find(|(row, _)| row == name);
        Ok(&found.ok_or_else(|| format!("no row {name}"))?.1)
    }
}

/// Fails unless the README, once there is one, has the same table.
pub(super) fn same_in_readme() -> Fallible<()> {
    if !path("README.md").exists() {
        return Ok(());
    }
    let ours = between(&file("docs/peers.md")?, "table")?;
    let readme = between(&file("README.md")?, "peers")?;
    ensure!(
        ours == readme,
        "README.md's table between <!-- peers --> and <!-- /peers --> is not that of docs/peers.md:\n\
         {readme:#?}\n{ours:#?}"
    );
    Ok(())
}

fn cells(row: &str) -> Fallible<Vec<String>> {
    let inner = row
        .strip_prefix('|')
        .and_then(|row| row.strip_suffix('|'))
        .ok_or_else(|| format!("no row of a table: {row:?}"))?;
    Ok(inner
        .split('|')
        .map(|cell| cell.trim().to_owned())
        .collect())
}

/// The lines between `<!-- NAME -->` and `<!-- /NAME -->`, without the empty ones.
pub(super) fn between(text: &str, name: &str) -> Fallible<Vec<String>> {
    let (open, close) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let (_, rest) = text
        .split_once(&open)
        .ok_or_else(|| format!("no marker {open}"))?;
    let (inner, _) = rest
        .split_once(&close)
        .ok_or_else(|| format!("no marker {close}"))?;
    let lines = inner.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn file(name: &str) -> Fallible<String> {
    fs::read_to_string(path(name)).map_err(|error| format!("{name}: {error}").into())
}
