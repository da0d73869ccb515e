//! The flags of the programs: what is not known, but known to users of other programs, is refused with what to do instead.

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// A flag of tcpdump, tshark or nfdump, and what to do here.
pub type Habit = (&'static str, &'static str);

/// Reads the arguments, the first of which is the program's own name; ends the process where they are wrong.
pub fn parse<T: Parser>(arguments: impl IntoIterator<Item = OsString>, habits: &[Habit]) -> T {
    T::try_parse_from(arguments).unwrap_or_else(|error| {
        let Some(hint) = hint(&error, habits) else { error.exit() };
        // Whoever reads may be gone.
        let _ = error.print();
        eprintln!("\n  hint: {hint}");
        std::process::exit(error.exit_code());
    })
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
