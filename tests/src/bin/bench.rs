//! Measures what the documents promise: prints a table, and writes JSON on request.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use ncm_tests::bench::{Plan, Row, run, table};

const HELP: &str = "usage: bench [--quick] [--only NAME]... [--json FILE]

  --quick       shorter runs and fewer rounds
  --only NAME   only rows whose names contain NAME
  --json FILE   write the rows as a JSON array too

Exits with 1 when a budget does not hold, 2 on wrong usage.";

fn main() -> ExitCode {
    let (plan, json) = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("bench: {error:#}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match measure(&plan, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<(Plan, Option<PathBuf>)> {
    let (mut plan, mut json) = (Plan::default(), None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => plan.quick = true,
            "--only" => plan.only.push(words.next().context("--only needs a NAME")?),
            "--json" => json = Some(PathBuf::from(words.next().context("--json needs a FILE")?)),
            "--help" | "-h" => {
                println!("{HELP}");
                std::process::exit(0);
            }
            _ => bail!("unknown argument `{word}`"),
        }
    }
    Ok((plan, json))
}

fn measure(plan: &Plan, json: Option<PathBuf>) -> Result<bool> {
    let mut rows: Vec<Row> = Vec::new();
    let outcome = run(plan, |row: Row| {
        eprintln!(
            "{}: {:.3} {} (reference {:.3})",
            row.name,
            row.value,
            row.unit,
            row.reference_value.unwrap_or(0.0)
        );
        rows.push(row);
    });
    println!("{}", table(&rows));
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(&file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    outcome?;
    if rows.is_empty() {
        bail!("no row has a name that contains {:?}", plan.only);
    }
    Ok(rows.iter().all(|row| row.holds != Some(false)))
}
