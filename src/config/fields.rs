//! The key `fields`: what a probe sends beside what every packet has.

use super::section::Section;
use dataflows::field::{FIELDS, Field};
use dataflows::measure::extra_fields;

/// The key.
pub(super) const KEY: &str = "fields";

/// The fields that a file names; none where the key is left out. `None` where one is wrong, which is noted.
pub(super) fn fields(file: &Section<'_>) -> Option<Vec<&'static Field>> {
    let mut fields = Vec::new();
    for name in file.texts(KEY, "the name of a field")? {
        let field = add(&mut fields, &name.value).map_err(|why| file.place.wrong(name.defined, why));
        file.place.kept(field)?;
    }
    Some(fields)
}

/// Reads names of fields, separated by commas.
pub fn parse(text: &str) -> Result<Vec<&'static Field>, String> {
    let mut fields = Vec::new();
    text.split(',').try_for_each(|name| add(&mut fields, name.trim()))?;
    Ok(fields)
}

fn add(fields: &mut Vec<&'static Field>, name: &str) -> Result<(), String> {
    let Some(field) = extra_fields().find(|field| field.name == name) else {
        return Err(refusal(name));
    };
    if fields.contains(&field) {
        return Err(format!("fields: `{name}` is named twice"));
    }
    fields.push(field);
    Ok(())
}

fn refusal(name: &str) -> String {
    let (base, _) = name.split_once('/').unwrap_or((name, ""));
    if FIELDS.iter().any(|field| field.name == base && !field.is_extra()) {
        return format!("fields: `{base}` comes with every packet; leave it out");
    }
    let is_meant = |field: &&Field| field.column == name || field.name.eq_ignore_ascii_case(name);
    let meant = extra_fields().find(is_meant).map(|field| format!("did you mean `{}`? ", field.name));
    let known = extra_fields().map(|field| field.name).collect::<Vec<_>>().join(", ");
    format!("fields: unknown field `{name}`; {}one of {known}", meant.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_fields_that_not_every_packet_has() {
        let names = |text| {
            parse(text).map(|fields| fields.iter().map(|field| field.name).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(names("DSCP, SrcMAC,PayloadBytes").as_deref(), Ok("DSCP SrcMAC PayloadBytes"));
        for (text, says) in [
            ("SrcIP/24", "`SrcIP` comes with every packet; leave it out"),
            ("TTL,TTL", "`TTL` is named twice"),
            ("", "unknown field ``; one of DSCP, ECN, TTL"),
            ("ttl", "did you mean `TTL`?"),
            ("payload_bytes", "did you mean `PayloadBytes`?"),
            ("Color", "Fragment, PayloadBytes, IPBytes"),
        ] {
            assert!(names(text).is_err_and(|why| why.contains(says)), "{text}");
        }
    }
}
