//! `--mechanisms`
pub(super) fn report(_json: bool) -> String {
    String::new()
}
