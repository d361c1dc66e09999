//! Versions: their numbers, and those in the names of files. Pure.

/// The version that NVIDIA's libraries have in their names: `libcuda.so.580.95.05` (driver README, "Installed Components").
pub fn library_version(name: &str) -> Option<&str> {
    let rest = name
        .strip_prefix("libcuda.so.")
        .or_else(|| name.strip_prefix("libnvidia-ml.so."))?;
    rest.contains('.').then_some(rest)
}

/// The numbers in a release or version, in order: `6.14.11-4-pve` is 6, 14, 11, 4.
pub fn numbers(text: &str) -> Vec<u32> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
    numbers.map_while(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_has_its_version_in_its_name_and_a_link_has_not() {
        assert_eq!(library_version("libcuda.so.580.95.05"), Some("580.95.05"));
        assert_eq!(library_version("libnvidia-ml.so.470.256.02"), Some("470.256.02"));
        assert_eq!(library_version("libcuda.so.1"), None);
        assert_eq!(library_version("libcudart.so.12.8.57"), None);
    }

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        assert_eq!(numbers("6.14.11-4-pve"), [6, 14, 11, 4]);
        assert!(numbers("6.14.11-4-pve") > numbers("6.8.12-13-pve"));
        assert!(numbers("7.0.2-2-pve") > numbers("6.17.2-1-pve"));
    }
}
