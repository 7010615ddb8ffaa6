//! Where the fields of a tracepoint's records lie, as tracefs says: for tracepoints of modules, whose types are not in the
//! kernel's own BTF.
//!
//! Decides nothing but what counts as a field: one line of the file `format`, with a name, an offset and a size. What cannot be
//! read is not there.

use std::{fs, io, path::Path};

use super::obstacle::Obstacle;

/// Where the kernel has its tracepoints. The second is where some systems have it only.
const PLACES: [&str; 2] = ["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"];

/// The records of one tracepoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::probes) struct Format(Vec<Field>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    offset: u32,
    size: u32,
}

impl Format {
    /// Reads the text of a file `format`.
    pub(in crate::probes) fn parse(text: &str) -> Self {
        Format(text.lines().filter_map(Field::parse).collect())
    }

    /// How many bytes after the start of a record the field of this name lies, if it has this size in bytes.
    pub(in crate::probes) fn offset(&self, name: &str, size: u32) -> Option<u32> {
        let found = self.0.iter().find(|field| field.name == name && field.size == size);
        found.map(|field| field.offset)
    }
}

impl Field {
    /// `field:__data_loc char[] name; offset:24; size:4; signed:1;`, with tabs between the parts.
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.trim().split(';').map(str::trim);
        let declaration = parts.next()?.strip_prefix("field:")?;
        let last = declaration.rsplit([' ', '*']).next()?;
        // Behind the name of an array there may be how long it is.
        let name = last.split('[').next().filter(|name| !name.is_empty())?;
        let mut number = |key: &str| parts.find_map(|part| part.strip_prefix(key))?.parse().ok();
        Some(Field { name: name.to_owned(), offset: number("offset:")?, size: number("size:")? })
    }
}

/// The records of the tracepoint of this group and name; `None` when the kernel has none.
///
/// # Errors
/// What tracepoints there are cannot be read.
pub(in crate::probes) fn format_of(group: &str, name: &str) -> Result<Option<Format>, Obstacle> {
    let mut last = io::ErrorKind::NotFound;
    for place in PLACES.map(Path::new) {
        // Every kernel with tracepoints has this.
        match fs::metadata(place.join("header_page")) {
            Ok(_) => {}
            Err(error) => {
                last = error.kind();
                continue;
            }
        }
        return match fs::read_to_string(place.join(group).join(name).join("format")) {
            Ok(text) => Ok(Some(Format::parse(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Obstacle::NoTracefs(error.kind())),
        };
    }
    Err(Obstacle::NoTracefs(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name: drm_run_job\nID: 1507\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:struct dma_fence * fence;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:struct thing *close;\toffset:64;\tsize:8;\tsigned:0;\n\
        \tfield:__data_loc char[] name;\toffset:24;\tsize:4;\tsigned:1;\n\
        \tfield:char comm[16];\toffset:48;\tsize:16;\tsigned:0;\n\n\
        print fmt: \"field:u64 made_up;\toffset:9;\tsize:8;\", REC->fence\n";

    #[test]
    fn fields_are_known_by_their_names_and_sizes() {
        let format = Format::parse(TEXT);
        assert_eq!(format.offset("fence", 8), Some(16));
        assert_eq!(format.offset("close", 8), Some(64));
        assert_eq!(format.offset("name", 4), Some(24));
        assert_eq!(format.offset("comm", 16), Some(48));
        assert_eq!(format.offset("common_pid", 4), Some(4));
        assert_eq!(format.offset("fence", 4), None, "of another size it would be misread");
        assert_eq!(format.offset("made_up", 8), None, "no field but how one is printed");
        assert_eq!(format.0.len(), 6);
    }

    #[test]
    fn what_is_cut_or_is_no_number_is_not_there() {
        for (at, _) in TEXT.char_indices() {
            let cut = Format::parse(&TEXT[..at]);
            assert!(cut.offset("fence", 8).is_none_or(|offset| offset == 16), "{at}");
        }
        for line in [
            "field:;offset:8;size:8;",
            "field:int x;offset:-8;size:4;",
            "field:int x;size:4;",
            "field:int x;offset:8;",
            "field:int x;offset:99999999999;size:4;",
            "int x;offset:8;size:4;",
        ] {
            assert_eq!(Format::parse(line), Format::default(), "{line}");
        }
    }
}
