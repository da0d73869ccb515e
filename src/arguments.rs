//! The flags of the programs: what is not known, but known to users of other programs, is refused with what to do instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Parser};
use std::ffi::OsString;

/// A flag of tcpdump, tshark or nfdump, and what to do here.
pub type Habit = (&'static str, &'static str);

/// An environment variable, and what it is for.
pub type Variable = (&'static str, &'static str);

/// Those that every program reads.
const VARIABLES: [Variable; 2] = [
    ("NETSPECTRA_LOG", "error, warn, info (default), debug or trace; PART=LEVEL for a part"),
    ("NETSPECTRA_LOG_FORMAT", "text (default) or json"),
];

/// Reads the arguments, the first of which is the program's own name; ends the process where they are wrong. Its help ends
/// with the environment variables that it reads, of which `more` are its own.
pub fn parse<T: Parser>(
    arguments: impl IntoIterator<Item = OsString>,
    habits: &[Habit],
    more: &[Variable],
) -> T {
    let mut read = with_environment(T::command(), more);
    let parsed = read
        .try_get_matches_from_mut(arguments)
        .and_then(|mut matches| T::from_arg_matches_mut(&mut matches));
    parsed.map_err(|error| error.format(&mut read)).unwrap_or_else(|error| {
        let Some(hint) = hint(&error, habits) else { error.exit() };
        // Whoever reads may be gone.
        let _ = error.print();
        eprintln!("\n  hint: {hint}");
        std::process::exit(error.exit_code());
    })
}

/// A program whose help ends with the environment variables that it reads.
fn with_environment(command: Command, more: &[Variable]) -> Command {
    let mut help = command.get_after_help().map(|help| format!("{help}\n\n")).unwrap_or_default();
    help.push_str("Environment:\n");
    let of_flags = command.get_arguments().filter_map(|flag| {
        let name = flag.get_env()?.to_string_lossy().into_owned();
        Some((name, format!("as --{}", flag.get_long()?)))
    });
    let owned = |(name, text): &Variable| ((*name).to_owned(), (*text).to_owned());
    let variables = VARIABLES.iter().map(owned).chain(of_flags).chain(more.iter().map(owned));
    variables.for_each(|(name, text)| help.push_str(&format!("  {name:<21}   {text}\n")));
    help.push_str("  Any variable that the configuration names as ${NAME}");
    command.after_help(help)
}

/// What to do instead of the flag that is refused.
fn hint(error: &clap::Error, habits: &[Habit]) -> Option<&'static str> {
    let wanted = match error.kind() {
        ErrorKind::UnknownArgument | ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
                return None;
            };
            argument.split(' ').next()?
        }
        _ => return None,
    };
    habits.iter().find(|(flag, _)| *flag == wanted).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[derive(Parser)]
    #[command(after_help = "Examples:\n  program --slow")]
    struct Flags {
        #[arg(long, env = "PROGRAM_SLOW")]
        slow: bool,
    }

    #[test]
    fn help_ends_with_the_variables_of_every_program_of_its_flags_and_its_own() {
        let help =
            with_environment(Flags::command(), &[("OWN", "what only it reads")]).render_help().to_string();
        let (_, end) = help
            .split_once("Examples:\n  program --slow\n\nEnvironment:\n")
            .expect("examples, then variables");
        let names: Vec<_> = end.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(names, ["NETSPECTRA_LOG", "NETSPECTRA_LOG_FORMAT", "PROGRAM_SLOW", "OWN", "Any"]);
        assert!(end.contains("  PROGRAM_SLOW            as --slow\n"), "{end}");
        assert!(Flags::try_parse_from(["program", "--slow"]).expect("flags").slow);
    }
}
