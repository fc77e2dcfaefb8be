//! What an installation brings along: shell completions and manual pages, made from the options themselves.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::NAME;
use crate::{Error, Result};

/// Print a script that completes innerloop's options in a shell
///
/// For example: innerloop completions bash > ~/.local/share/bash-completion/completions/innerloop
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Print the manual page, or write one for each command
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write innerloop.1, innerloop-train.1, ... to this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn completions(mut command: Command, arguments: &Completions) {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, NAME, &mut script);
    print(&script);
}

pub(super) fn man(mut command: Command, arguments: &Man) -> Result<()> {
    command.build();
    let Some(folder) = &arguments.out else {
        print(&page(command)?);
        return Ok(());
    };
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
    let mut commands: Vec<&Command> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
    commands.push(&command);
    for command in commands {
        // Of a subcommand: innerloop-train.
        let name = command.get_display_name().unwrap_or(NAME);
        let page = page(command.clone())?;
        crate::atomic::write(&folder.join(format!("{name}.1")), |out| out.write_all(&page))?;
    }
    say!("manual pages: {}", folder.display());
    Ok(())
}

fn page(command: Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    let written = clap_mangen::Man::new(command).render(&mut page);
    written.map_err(|e| Error::io(Path::new(NAME), "write", e))?;
    Ok(page)
}

/// What was asked for goes to standard output in every mode; that nobody reads along is no failure.
fn print(text: &[u8]) {
    let _ = std::io::stdout().write_all(text);
}
