"""Constructor signatures read from source text, so that a config is checked without importing what it names.
Nothing is executed: modules are found on the path, parsed, and their names followed through imports, aliases and base classes."""

from __future__ import annotations

import ast
import builtins
import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path

# Bases whose constructor takes nothing from a config; what they say themselves (*args, **kwargs) would accept any typo.
_BARE = {
    "builtins.object", "abc.ABC", "typing.Protocol", "typing.Generic", "torch.nn.Module", "torch.nn.modules.module.Module",
    "torch.utils.data.Dataset", "torch.utils.data.IterableDataset", "torch.utils.data.Sampler", "torch.optim.Optimizer",
    *(f"{package}.{name}" for package in ("pytorch_lightning", "lightning.pytorch") for name in ("LightningModule", "LightningDataModule", "Callback")),
}


@dataclass(frozen=True, eq=False)
class Source:
    """A parsed module.

    Args:
        name: dotted name.
        package: dotted name that relative imports start from.
        names: what each name at the top of the module stands for: a definition, an import, or the value assigned.
        stars: modules whose every name is imported.
    """

    name: str
    package: str
    names: Mapping[str, ast.AST | str] = field(repr=False)
    stars: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Found:
    """A definition: the module it is written in, its name there, and its syntax (class, function, or an assigned value)."""

    source: Source
    name: str
    node: ast.AST

    @property
    def address(self) -> str:
        """Dotted name of the place where it is written."""
        return f"{self.source.name}.{self.name}"


@dataclass(frozen=True, eq=False)
class Parameter:
    """One parameter of a constructor. `annotation` is to be read in `source`; `word` is its default where that is a string."""

    name: str
    required: bool
    annotation: ast.expr | None
    source: Source
    word: str | None = None


@dataclass(frozen=True)
class Signature:
    """What a target takes.

    Args:
        name: of the class or function, as messages call it.
        parameters: by name, in order.
        anything: further keys are accepted, and what they mean cannot be known here.
    """

    name: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    anything: bool = False


@functools.cache
def find_spec(name: str) -> ModuleSpec | None:
    """Where a module lives; its parents are not imported, as importlib.util.find_spec would."""
    path = None
    if "." in name:
        parent = find_spec(name.rpartition(".")[0])
        if parent is None or parent.submodule_search_locations is None:
            return None
        path = parent.submodule_search_locations
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


@functools.cache
def load(name: str) -> Source | None:
    """The parsed module; None when there is none, or none written in Python."""
    spec = find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    names: dict[str, ast.AST | str] = {}
    stars: list[str] = []
    for node in _statements(ast.parse(Path(spec.origin).read_bytes(), spec.origin).body):
        if isinstance(node, ast.ImportFrom):
            module = _absolute(node, package)
            for alias in node.names:
                if alias.name == "*":
                    stars.append(module)
                else:
                    names[alias.asname or alias.name] = f"{module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = alias.name if alias.asname else alias.name.partition(".")[0]
        else:
            names.update(_bound(node))
    return Source(name, package, names, tuple(stars))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "handlers", "orelse", "finalbody"):
                for child in getattr(node, part, []):
                    yield from _statements(child.body if isinstance(child, ast.ExceptHandler) else [child])
        else:
            yield node


def _bound(node: ast.stmt) -> dict[str, ast.AST | str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name: node}
    if isinstance(node, ast.Assign):
        return {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return {node.target.id: node.value}
    return {}


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` as text when the expression is such a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return None if head is None else f"{head}.{node.attr}"
    return None


def qualify(source: Source, name: str) -> str:
    """The full dotted name of what `name` means in a module, one import followed: `nn.Module` gives `torch.nn.Module`."""
    head, _, rest = name.partition(".")
    bound = source.names.get(head)
    if isinstance(bound, str):
        return f"{bound}.{rest}" if rest else bound
    if bound is None and hasattr(builtins, head):
        return f"builtins.{name}"
    return f"{source.name}.{name}"


def locate(address: str) -> Found | None:
    """The definition that a full dotted name ends at, through re-exports and aliases; None when the source does not show it."""
    return _locate(address, frozenset())


def _locate(address: str, seen: frozenset[str]) -> Found | None:
    parts = address.split(".")
    count = next((n for n in range(len(parts), 0, -1) if find_spec(".".join(parts[:n])) is not None), 0)
    source = load(".".join(parts[:count])) if 0 < count < len(parts) else None
    if source is None or address in seen:
        return None
    head, rest = parts[count], parts[count + 1 :]
    bound = source.names.get(head)
    if bound is None:
        return next((hit for star in source.stars if (hit := _locate(".".join([star, head, *rest]), seen | {address}))), None)
    if isinstance(bound, str):
        return _locate(".".join([bound, *rest]), seen | {address})
    alias = dotted(bound)
    if alias is not None:
        return _locate(".".join([qualify(source, alias), *rest]), seen | {address})
    for name in rest:
        inner = [n for n in bound.body if name in _bound(n)] if isinstance(bound, ast.ClassDef) else []
        if not inner:
            return None
        bound, head = inner[-1], f"{head}.{name}"
    return Found(source, head, bound)


def read(found: Found) -> Signature | None:
    """What a class or function takes; None when `found` is neither."""
    if isinstance(found.node, ast.ClassDef):
        return replace(_construct(found), name=found.name)
    if isinstance(found.node, ast.FunctionDef | ast.AsyncFunctionDef):
        marks = {dotted(mark) for mark in found.node.decorator_list}
        return _callable(found, found.node, bound="." in found.name and "staticmethod" not in marks)
    return None


def _callable(found: Found, node: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool) -> Signature:
    spec, source = node.args, found.source
    plain = [*spec.posonlyargs, *spec.args]
    optional = [None] * (len(plain) - len(spec.defaults)) + list(spec.defaults)
    pairs = list(zip(plain, optional))[1 if bound else 0 :] + list(zip(spec.kwonlyargs, spec.kw_defaults))
    words = {arg.arg: default.value for arg, default in pairs if isinstance(default, ast.Constant) and isinstance(default.value, str)}
    parameters = {arg.arg: Parameter(arg.arg, default is None, arg.annotation, source, words.get(arg.arg)) for arg, default in pairs}
    return Signature(found.name, parameters, spec.kwarg is not None)


def _construct(found: Found) -> Signature:
    """The constructor of a class: its own, its fields (dataclass, NamedTuple), or that of the first base which has one."""
    node = found.node
    assert isinstance(node, ast.ClassDef)
    own = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    start = own.get("__init__") or own.get("__new__")
    if start is not None:
        signature = _callable(found, start, bound=True)
        given = None if start.args.kwarg is None else _passes_on(start, start.args.kwarg.arg)
        if signature.anything and given is not None:
            inherited = _inherited(found)
            left = {name: parameter for name, parameter in inherited.parameters.items() if name not in given}
            return replace(signature, parameters={**left, **signature.parameters}, anything=inherited.anything)
        return signature
    marks = {dotted(mark.func if isinstance(mark, ast.Call) else mark) for mark in node.decorator_list}
    bases = {qualify(found.source, name) for base in node.bases if (name := dotted(base))}
    if marks & {"dataclass", "dataclasses.dataclass"}:
        return Signature(found.name, {**_inherited(found).parameters, **_fields(found)})
    return Signature(found.name, _fields(found)) if "typing.NamedTuple" in bases else _inherited(found)


def _passes_on(start: ast.FunctionDef, name: str) -> set[str] | None:
    """The keywords that a constructor sets itself where it hands `**name` to its base; None when it does not hand them on."""
    for node in ast.walk(start):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("__init__", "__new__"):
            if any(key.arg is None and isinstance(key.value, ast.Name) and key.value.id == name for key in node.keywords):
                return {key.arg for key in node.keywords if key.arg is not None}
            return None
    return None


def _inherited(found: Found) -> Signature:
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        name = dotted(base.value if isinstance(base, ast.Subscript) else base)
        address = None if name is None else qualify(found.source, name)
        if address in _BARE:
            continue
        parent = None if address is None else locate(address)
        if parent is None or not isinstance(parent.node, ast.ClassDef):
            return Signature(found.name, anything=True)
        signature = _construct(parent)
        if signature.parameters or signature.anything:
            return signature
    return Signature(found.name)


def _fields(found: Found) -> dict[str, Parameter]:
    assert isinstance(found.node, ast.ClassDef)
    fields: dict[str, Parameter] = {}
    for node in found.node.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or "ClassVar" in ast.dump(node.annotation):
            continue
        options = None
        if isinstance(node.value, ast.Call) and dotted(node.value.func) in ("field", "dataclasses.field"):
            options = {k.arg: k.value for k in node.value.keywords}
        shown = None if options is None else options.get("init")
        if isinstance(shown, ast.Constant) and not shown.value:
            continue
        required = node.value is None if options is None else not {"default", "default_factory"} & set(options)
        fields[node.target.id] = Parameter(node.target.id, required, node.annotation, found.source)
    return fields
