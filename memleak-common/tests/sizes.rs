//! No shared struct is left out of the list of sizes in `lib.rs`.

use std::{fs, path::Path};

/// Names of the structs that have a representation of their own, but for generic ones: what is made
/// of these has a name.
fn shared_structs(text: &str) -> Vec<String> {
    let after = text.split("#[repr(C)]").skip(1).chain(text.split("#[repr(transparent)]").skip(1));
    let declared =
        after.map(|after| after.split("pub struct ").nth(1).expect("a struct after its representation"));
    let named =
        declared.map(|text| text.split_at(text.find(|c: char| !c.is_alphanumeric()).expect("an end")));
    named.filter(|(_, rest)| !rest.starts_with('<')).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn every_shared_struct_has_its_size_asserted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let library = fs::read_to_string(folder.join("lib.rs")).expect("lib.rs is read");
    let list = library.split("assert_sizes! {").nth(1).and_then(|rest| rest.split('}').next());
    let list = list.expect("lib.rs has the list");
    let mut structs = 0;
    for entry in fs::read_dir(&folder).expect("the folder is read") {
        let path = entry.expect("the folder is read").path();
        let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if module == "lib" || !path.is_file() {
            continue;
        }
        for name in shared_structs(&fs::read_to_string(&path).expect("a source is read")) {
            let line = format!("    {module}::{name} = ");
            assert!(list.lines().any(|listed| listed.starts_with(&line)), "no line in lib.rs: {line}");
            structs += 1;
        }
    }
    assert!(structs > 25, "{structs}");
}
