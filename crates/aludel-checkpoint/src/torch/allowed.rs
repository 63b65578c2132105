//! Lists the names that a pickle may ask for: what tensors and state dicts are made of.
//!
//! Everything else is refused when it is named, whether it would be called or not: a class that is only mentioned may run
//! code when it is built.

use safetensors::Dtype;

use super::{Fault, REMEDY, unsupported};

/// Something that a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// A mapping that keeps its order.
    OrderedDict,
    /// A tensor from its storage; the later version is given its type apart.
    Rebuild {
        /// Whether the type is the argument after the hooks.
        has_dtype: bool,
    },
    /// A parameter from a tensor.
    Parameter,
    /// A tensor of a class, with attributes.
    FromType,
    /// The class of a tensor.
    TensorClass,
    /// The class of a storage; `None` for one of bytes.
    Storage(Option<Dtype>),
    /// A type.
    Type(Dtype),
    /// Sides, as a tuple.
    Size,
    /// What is built and then ignored.
    Ignored,
}

/// Looks a name up.
///
/// Errors: a fault that names it.
pub(super) fn find(module: &str, name: &str) -> Result<Known, Fault> {
    match (module, name) {
        ("collections", "OrderedDict") => Ok(Known::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Ok(Known::Rebuild { has_dtype: false }),
        ("torch._utils", "_rebuild_tensor_v3") => Ok(Known::Rebuild { has_dtype: true }),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Ok(Known::Parameter),
        ("torch._tensor", "_rebuild_from_type_v2") => Ok(Known::FromType),
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Ok(Known::TensorClass),
        ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => Ok(Known::Storage(None)),
        ("torch", "Size") => Ok(Known::Size),
        ("torch", "device") => Ok(Known::Ignored),
        ("torch", _) => {
            let storage = STORAGES.iter().find(|(known, _)| name.strip_suffix("Storage") == Some(known));
            let dtype = TYPES.iter().find(|(known, _)| *known == name);
            match (storage, dtype) {
                (Some(&(_, dtype)), _) => Ok(Known::Storage(Some(dtype))),
                (_, Some(&(_, dtype))) => Ok(Known::Type(dtype)),
                _ => refused(module, name),
            }
        }
        _ => refused(module, name),
    }
}

fn refused(module: &str, name: &str) -> Result<Known, Fault> {
    let asked = shown(&format!("{module}.{name}"));
    unsupported(format!(
        "its pickle asks for `{asked}`, which is no part of a tensor, so nothing of it was run; {REMEDY}"
    ))
}

/// A text of the file in a message: without control characters, and not long.
pub(super) fn shown(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut shown: String = plain.take(MOST_SHOWN).collect();
    if text.chars().nth(MOST_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

const MOST_SHOWN: usize = 100;

const STORAGES: [(&str, Dtype); 11] = [
    ("Float", Dtype::F32),
    ("Half", Dtype::F16),
    ("BFloat16", Dtype::BF16),
    ("Double", Dtype::F64),
    ("Long", Dtype::I64),
    ("Int", Dtype::I32),
    ("Short", Dtype::I16),
    ("Char", Dtype::I8),
    ("Byte", Dtype::U8),
    ("Bool", Dtype::BOOL),
    ("ComplexFloat", Dtype::C64),
];

const TYPES: [(&str, Dtype); 17] = [
    ("float32", Dtype::F32),
    ("float16", Dtype::F16),
    ("bfloat16", Dtype::BF16),
    ("float64", Dtype::F64),
    ("int64", Dtype::I64),
    ("int32", Dtype::I32),
    ("int16", Dtype::I16),
    ("int8", Dtype::I8),
    ("uint8", Dtype::U8),
    ("uint16", Dtype::U16),
    ("uint32", Dtype::U32),
    ("uint64", Dtype::U64),
    ("bool", Dtype::BOOL),
    ("complex64", Dtype::C64),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("float8_e5m2", Dtype::F8_E5M2),
    ("float8_e8m0fnu", Dtype::F8_E8M0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tensors_are_made_of_is_known() {
        assert_eq!(find("torch", "BFloat16Storage").unwrap(), Known::Storage(Some(Dtype::BF16)));
        assert_eq!(find("torch", "float8_e4m3fn").unwrap(), Known::Type(Dtype::F8_E4M3));
        assert_eq!(find("collections", "OrderedDict").unwrap(), Known::OrderedDict);
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (module, name) in [
            ("os", "system"),
            ("builtins", "eval"),
            ("torch", "load"),
            ("torch", "Storage"),
            ("torch.nn.modules.linear", "Linear"),
            ("collections", "OrderedDict.clear"),
            ("", ""),
        ] {
            let Err(Fault::Unsupported(detail)) = find(module, name) else { panic!("{module}.{name}") };
            assert!(detail.contains(&format!("`{module}.{name}`")), "{detail}");
        }
    }

    #[test]
    fn a_name_in_a_message_is_short_and_plain() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), MOST_SHOWN + 1);
    }
}
