//! The page about the settings is what the program has.

use std::{env, fs, path::Path};

use crate::config::{SETTINGS, reference};

#[test]
fn the_page_about_the_settings_is_what_the_program_has() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    if env::var_os("COUCOU_TEST_UPDATE_DOCS").is_some() {
        fs::write(&path, reference()).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == reference(),
        "docs/settings.md: COUCOU_TEST_UPDATE_DOCS=1 cargo test --lib config writes it"
    );
}

#[test]
fn each_section_is_there_once_and_has_its_settings() {
    let page = reference();
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut once = sections.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), sections.len(), "{sections:?}");
    for setting in SETTINGS {
        assert_eq!(page.matches(&format!("- **`{}`**", setting.path)).count(), 1, "{}", setting.path);
    }
}
