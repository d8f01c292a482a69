use libtest_mimic::Trial;
pub fn tests() -> Vec<Trial> {
    Vec::new()
}
pub fn role() -> i32 {
    0
}
