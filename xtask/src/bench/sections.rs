//! Parts of a document that the bench writes: from `<!-- NAME -->` to `<!-- /NAME -->`.

use std::{fs, ops::Range};

use anyhow::{Context, Result};

use crate::run;

/// Replaces the section of a document of the repository; one that has none gets it at its end.
pub fn write(document: &str, name: &str, text: &str) -> Result<()> {
    let old = read(document)?;
    store(document, &replaced(&old, name, text))
}

fn read(document: &str) -> Result<String> {
    fs::read_to_string(run::root().join(document)).with_context(|| format!("cannot read {document}"))
}

fn store(document: &str, text: &str) -> Result<()> {
    fs::write(run::root().join(document), text).with_context(|| format!("cannot write {document}"))
}

/// Where a section is, with its marks.
fn place(document: &str, name: &str) -> Option<Range<usize>> {
    let end_mark = format!("<!-- /{name} -->");
    let start = document.find(&format!("<!-- {name} -->"))?;
    let end = start + document.get(start..)?.find(&end_mark)? + end_mark.len();
    Some(start..end)
}

fn replaced(document: &str, name: &str, text: &str) -> String {
    let section = format!("<!-- {name} -->\n{}\n<!-- /{name} -->", text.trim_end());
    match place(document, name) {
        Some(place) => {
            let mut document = document.to_owned();
            document.replace_range(place, &section);
            document
        }
        None => format!("{}\n\n{section}\n", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let first = replaced("# Title\n\ntext\n", "one", "1\n");
        assert_eq!(first, "# Title\n\ntext\n\n<!-- one -->\n1\n<!-- /one -->\n");
        let both = replaced(&first, "two", "2");
        assert_eq!(
            replaced(&both, "one", "11"),
            "# Title\n\ntext\n\n<!-- one -->\n11\n<!-- /one -->\n\n<!-- two -->\n2\n<!-- /two -->\n"
        );
    }
}
