//! By which methods a GPU may be reset.

use toml::de::DeValue;

use crate::settings::kinds::Value;

/// How a GPU may be reset while it is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reset {
    /// As the kernel has it, or as [`crate::settings::known_gpus`] knows better.
    Auto,
    /// We never ask for a reset ourselves, and change nothing about those of VFIO.
    Never,
    /// By these methods only, in this order.
    By(String),
}

/// The reset methods of the kernel (linux, drivers/pci/pci.c, pci_reset_fn_methods).
const RESET_METHODS: [&str; 7] = ["device_specific", "acpi", "flr", "af_flr", "pm", "bus", "cxl_bus"];

impl Reset {
    /// From a setting.
    ///
    /// # Errors
    /// What it must be.
    pub fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let mut reset = Reset::Auto;
        let taken = reset.take(value);
        taken.ok_or_else(|| format!("it must be {}", reset.allowed()))?;
        Ok(reset)
    }
}

impl Value for Reset {
    fn take(&mut self, value: &DeValue<'_>) -> Option<()> {
        let DeValue::String(text) = value else { return None };
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        *self = match words.as_slice() {
            [] => return None,
            ["auto"] => Reset::Auto,
            ["never"] => Reset::Never,
            words if words.iter().all(|w| RESET_METHODS.contains(w)) => Reset::By(words.join(" ")),
            _ => return None,
        };
        Some(())
    }

    fn allowed(&self) -> String {
        format!("\"auto\", \"never\", or methods out of: {}", RESET_METHODS.join(" "))
    }

    fn shown(&self) -> String {
        match self {
            Reset::Auto => "auto",
            Reset::Never => "never",
            Reset::By(methods) => methods,
        }
        .to_owned()
    }

    fn toml(&self) -> String {
        format!("\"{}\"", self.shown())
    }

    fn words(&self) -> Vec<(&'static str, String)> {
        let only = format!(
            "only by these of the kernel's reset methods, in this order. All there are: {}.",
            RESET_METHODS.join(" ")
        );
        vec![
            (
                "auto",
                "as the kernel has it, but for models of which something better is known.".to_owned(),
            ),
            (
                "never",
                "gpu-handoff asks for no reset. What VFIO resets stays as it is.".to_owned(),
            ),
            ("flr bus", only),
        ]
    }
}
