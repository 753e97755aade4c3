//! What a specification says. It is written as it is read.

use std::fmt;

use super::lexer;

/// The highest argument that a specification can name: integer arguments in registers (System V ABI
/// for x86-64, 3.2.3).
pub const MAX_ARGUMENT: u8 = 6;

/// One side of a pair, in the order of the command line or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// A function that hands something out.
    Acquire(AcquireSpec),
    /// A function that takes it back.
    Release(ReleaseSpec),
}

impl Spec {
    /// Which function it is.
    pub fn head(&self) -> &Head {
        match self {
            Self::Acquire(acquire) => &acquire.head,
            Self::Release(release) => &release.head,
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquire(acquire) => acquire.fmt(f),
            Self::Release(release) => release.fmt(f),
        }
    }
}

/// Which function, and of which resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The resource's name, if one was given.
    pub resource: Option<String>,
    /// The object that defines the function: a path, a file name or a library's name. `None`: any
    /// that does.
    pub object: Option<String>,
    /// Its symbol, without version.
    pub function: String,
}

/// A function that hands something out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcquireSpec {
    /// Which function.
    pub head: Head,
    /// How large it is.
    pub size: Size,
    /// Where its handle is found when the call returns.
    pub handle: Handle,
    /// A second one, handed out by the same call (pipe).
    pub second: Option<Handle>,
    /// What the same call releases, if it succeeds (realloc).
    pub releases: Option<Handle>,
    /// The same handle may be handed out several times, and must be released as often (dlopen).
    pub counted: bool,
    /// When the call has succeeded. `None`: when the handle is one: a pointer neither 0 nor -1, an
    /// int not negative.
    pub success: Option<Condition>,
}

/// A function that takes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseSpec {
    /// Which function.
    pub head: Head,
    /// Where the handle is when the function is entered; never [`ValuePlace::Return`].
    pub handle: Handle,
    /// When the call has released it. `None`: always.
    pub success: Option<Condition>,
}

/// A value that names what was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// Where it is.
    pub place: ValuePlace,
    /// What it is.
    pub width: Width,
}

/// Where a value is. Arguments count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValuePlace {
    /// The return value.
    Return,
    /// An argument.
    Argument(u8),
    /// In memory: `offset` bytes from where the argument points to.
    Behind {
        /// The argument.
        argument: u8,
        /// Bytes, from -32768 to 32767.
        offset: i16,
    },
}

/// The C type of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Width {
    /// 64 bits: a pointer, a `long`, a `size_t`.
    #[default]
    Long,
    /// 32 bits with a sign.
    Int,
}

/// How large what was acquired is. Arguments count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Size {
    /// It has no size.
    #[default]
    None,
    /// As many bytes as an argument says.
    Argument(u8),
    /// The product of two arguments.
    Product(u8, u8),
    /// Always the same.
    Constant(u64),
}

/// A comparison of the return value with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What the function returns. `None`: the type of the resource's handles if it returns one,
    /// else an int.
    pub width: Option<Width>,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what.
    pub value: i64,
}

/// How a value is compared, with its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Comparison {
    /// All of them; one that begins with another's sign goes before it.
    pub const ALL: [Self; 6] =
        [Self::Equal, Self::NotEqual, Self::LessOrEqual, Self::GreaterOrEqual, Self::Less, Self::Greater];

    /// As it is written.
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}

impl ReleaseSpec {
    /// What the function returns, for its condition: what was said, else an int.
    pub fn success_width(&self) -> Width {
        self.success.and_then(|condition| condition.width).unwrap_or(Width::Int)
    }
}

/// In a form that [`super::parse_acquire`] reads as the same.
impl fmt::Display for AcquireSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head.fmt(f)?;
        if self.size != Size::None {
            write!(f, "({} size)", self.size)?;
        }
        write!(f, " -> {}", self.handle)?;
        if let Some(second) = &self.second {
            write!(f, ", {second}")?;
        }
        if self.counted {
            f.write_str(" counted")?;
        }
        if let Some(releases) = &self.releases {
            write!(f, " releasing {releases}")?;
        }
        write_success(self.success, f)
    }
}

/// In a form that [`super::parse_release`] reads as the same.
impl fmt::Display for ReleaseSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.head, self.handle)?;
        write_success(self.success, f)
    }
}

fn write_success(success: Option<Condition>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match success {
        Some(condition) => write!(f, " if {condition}"),
        None => Ok(()),
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(resource) = &self.resource {
            write!(f, "{resource}=")?;
        }
        match &self.object {
            None => {}
            Some(object) if lexer::is_plain(object) => write!(f, "{object}:")?,
            Some(object) => write!(f, "\"{}\":", object.replace('\\', "\\\\").replace('"', "\\\""))?,
        }
        f.write_str(&self.function)
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)?;
        match self.width {
            Width::Long => Ok(()),
            Width::Int => f.write_str(" as int"),
        }
    }
}

impl fmt::Display for ValuePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("ret"),
            Self::Argument(argument) => write!(f, "arg{argument}"),
            Self::Behind { argument, offset: 0 } => write!(f, "*arg{argument}"),
            Self::Behind { argument, offset } => write!(f, "*(arg{argument}{offset:+})"),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Argument(argument) => write!(f, "arg{argument}"),
            Self::Product(a, b) => write!(f, "arg{a}*arg{b}"),
            Self::Constant(bytes) => bytes.fmt(f),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ret")?;
        match self.width {
            None => {}
            Some(Width::Int) => f.write_str(" as int")?,
            Some(Width::Long) => f.write_str(" as long")?,
        }
        write!(f, " {} {}", self.comparison.sign(), self.value)
    }
}
