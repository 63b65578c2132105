//! Names the element types that a merge's output can have.

use aludel_checkpoint::Dtype;
use aludel_document::{Cursor, nearest, quoted};
use serde::Serialize;

use crate::problem::Problem;

/// An element type that a merge computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum FloatType {
    /// 32 bits; `float32`.
    #[serde(rename = "float32")]
    F32,
    /// 16 bits with 5 of exponent; `float16`.
    #[serde(rename = "float16")]
    F16,
    /// 16 bits with 8 of exponent; `bfloat16`.
    #[serde(rename = "bfloat16")]
    BF16,
}

/// torch's names first, then the short forms in common use.
const NAMES: [(&str, FloatType); 10] = [
    ("float32", FloatType::F32),
    ("float16", FloatType::F16),
    ("bfloat16", FloatType::BF16),
    ("f32", FloatType::F32),
    ("fp32", FloatType::F32),
    ("float", FloatType::F32),
    ("f16", FloatType::F16),
    ("fp16", FloatType::F16),
    ("half", FloatType::F16),
    ("bf16", FloatType::BF16),
];

impl FloatType {
    /// torch's name for it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    /// The type of this name, with or without `torch.` in front.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, float)| float)
    }

    pub(super) fn read(cursor: &Cursor<'_>) -> Result<Self, Problem> {
        let name = cursor.text("the name of an element type")?;
        Self::from_name(name).ok_or_else(|| {
            let problem =
                cursor.problem(format!("{} is no element type that a merge computes on", quoted(name)));
            let accepted = "accepted are `float32`, `float16` and `bfloat16`";
            match nearest(name, NAMES.iter().map(|(known, _)| *known)) {
                Some(meant) => problem.with_hint(format!("did you mean `{meant}`? {accepted}")),
                None => problem.with_hint(accepted),
            }
        })
    }
}

impl From<FloatType> for Dtype {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::BF16 => Self::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use aludel_checkpoint::{Dtype, torch_name};

    use super::FloatType::{self, BF16, F16, F32};

    #[test]
    fn each_type_has_its_torch_name_and_short_forms() {
        for (float, names) in [
            (F32, ["float32", "f32", "fp32", "torch.float32"]),
            (F16, ["float16", "half", "fp16", "torch.half"]),
            (BF16, ["bfloat16", "bf16", "torch.bfloat16", "torch.bf16"]),
        ] {
            assert_eq!(names.map(FloatType::from_name), [Some(float); 4]);
            assert_eq!(FloatType::from_name(float.torch_name()), Some(float));
            assert_eq!(torch_name(Dtype::from(float)), Some(float.torch_name()));
            assert_eq!(serde_json::to_value(float).unwrap(), float.torch_name());
        }
        assert_eq!(["int64", "float64", "Float32", ""].map(FloatType::from_name), [None; 4]);
    }
}
