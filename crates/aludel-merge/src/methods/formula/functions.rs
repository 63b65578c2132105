//! Lists the functions that a formula may call.

/// A function.
#[derive(Debug)]
pub(super) struct Function {
    pub name: &'static str,
    /// The fewest and the most arguments.
    pub arguments: (usize, usize),
    /// Set where the argument is evaluated once for each model.
    pub over: Option<OverModels>,
    pub summary: &'static str,
}

/// How the values of all models become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OverModels {
    Total,
    Average,
    Most,
    Least,
}

const fn function(name: &'static str, arguments: (usize, usize), summary: &'static str) -> Function {
    Function { name, arguments, over: None, summary }
}

const fn over_models(name: &'static str, over: OverModels, summary: &'static str) -> Function {
    Function { name, arguments: (1, 1), over: Some(over), summary }
}

/// All of them, as docs/formula.md lists them.
pub(super) const FUNCTIONS: &[Function] = &[
    over_models("total", OverModels::Total, "total(x): the sum of x over all models"),
    over_models("average", OverModels::Average, "average(x): the mean of x over all models"),
    over_models("most", OverModels::Most, "most(x): the greatest x of all models"),
    over_models("least", OverModels::Least, "least(x): the least x of all models"),
    function("abs", (1, 1), "abs(x): the magnitude"),
    function("sign", (1, 1), "sign(x): 1, 0 or -1"),
    function("sqrt", (1, 1), "sqrt(x): the square root"),
    function("exp", (1, 1), "exp(x): the exponential"),
    function("log", (1, 1), "log(x): the natural logarithm"),
    function("expm1", (1, 1), "expm1(x): exp(x) - 1, exact near 0"),
    function("log1p", (1, 1), "log1p(x): log(1 + x), exact near 0"),
    function("sin", (1, 1), "sin(x): the sine; not of elements"),
    function("cos", (1, 1), "cos(x): the cosine; not of elements"),
    function("acos", (1, 1), "acos(x): the arc cosine; not of elements"),
    function("min", (2, usize::MAX), "min(x, y, ...): the least"),
    function("max", (2, usize::MAX), "max(x, y, ...): the greatest"),
    function("clamp", (3, 3), "clamp(x, low, high): x within a range"),
    function("where", (3, 3), "where(c, x, y): x where c is not 0, else y"),
    function("random", (0, 1), "random(i): uniform numbers from 0 to 1, stream i"),
    function("sum", (1, 1), "sum(x): over all elements"),
    function("mean", (1, 1), "mean(x): over all elements"),
    function("dot", (2, 2), "dot(x, y): the inner product"),
    function("norm", (1, 1), "norm(x): the Euclidean norm"),
    function("largest", (1, 1), "largest(x): the largest magnitude"),
    function("greatest", (1, 1), "greatest(x): the greatest value"),
    function("kth", (2, 2), "kth(x, k): the k-th largest magnitude, k from 1"),
    function("top", (2, 2), "top(x, k): 1 for the k largest magnitudes, else 0"),
    function("row_sum", (1, 1), "row_sum(x): over each row"),
    function("row_mean", (1, 1), "row_mean(x): over each row"),
    function("row_dot", (2, 2), "row_dot(x, y): of each row"),
    function("row_norm", (1, 1), "row_norm(x): of each row"),
    function("row_largest", (1, 1), "row_largest(x): of each row"),
    function("row_greatest", (1, 1), "row_greatest(x): of each row"),
    function("row_rank", (1, 1), "row_rank(x): how many of its row are smaller in magnitude"),
    function("column_sum", (1, 1), "column_sum(x): over each column"),
    function("column_mean", (1, 1), "column_mean(x): over each column"),
    function("column_dot", (2, 2), "column_dot(x, y): of each column"),
    function("column_norm", (1, 1), "column_norm(x): of each column"),
    function("column_largest", (1, 1), "column_largest(x): of each column"),
    function("column_greatest", (1, 1), "column_greatest(x): of each column"),
];
