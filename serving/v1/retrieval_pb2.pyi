from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IdType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ID_TYPE_UNSPECIFIED: _ClassVar[IdType]
    ID_TYPE_UINT64: _ClassVar[IdType]
    ID_TYPE_STRING: _ClassVar[IdType]

class FallbackReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FALLBACK_REASON_UNSPECIFIED: _ClassVar[FallbackReason]
    FALLBACK_REASON_NO_SUBJECT: _ClassVar[FallbackReason]
    FALLBACK_REASON_UNKNOWN_USER: _ClassVar[FallbackReason]
    FALLBACK_REASON_NOTHING_USABLE: _ClassVar[FallbackReason]
ID_TYPE_UNSPECIFIED: IdType
ID_TYPE_UINT64: IdType
ID_TYPE_STRING: IdType
FALLBACK_REASON_UNSPECIFIED: FallbackReason
FALLBACK_REASON_NO_SUBJECT: FallbackReason
FALLBACK_REASON_UNKNOWN_USER: FallbackReason
FALLBACK_REASON_NOTHING_USABLE: FallbackReason

class Id(_message.Message):
    __slots__ = ("number", "text")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: int
    text: str
    def __init__(self, number: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class Ids(_message.Message):
    __slots__ = ("numbers", "texts")
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, numbers: _Optional[_Iterable[int]] = ..., texts: _Optional[_Iterable[str]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("integers", "numbers", "texts", "lengths", "scores", "missing_rows")
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    MISSING_ROWS_FIELD_NUMBER: _ClassVar[int]
    integers: Integers
    numbers: Numbers
    texts: Texts
    lengths: Lengths
    scores: _containers.RepeatedScalarFieldContainer[float]
    missing_rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, integers: _Optional[_Union[Integers, _Mapping]] = ..., numbers: _Optional[_Union[Numbers, _Mapping]] = ..., texts: _Optional[_Union[Texts, _Mapping]] = ..., lengths: _Optional[_Union[Lengths, _Mapping]] = ..., scores: _Optional[_Iterable[float]] = ..., missing_rows: _Optional[_Iterable[int]] = ...) -> None: ...

class Integers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Texts(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Lengths(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("conjunction", "disjunction", "negation", "equal", "membership", "range")
    CONJUNCTION_FIELD_NUMBER: _ClassVar[int]
    DISJUNCTION_FIELD_NUMBER: _ClassVar[int]
    NEGATION_FIELD_NUMBER: _ClassVar[int]
    EQUAL_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    conjunction: FilterList
    disjunction: FilterList
    negation: Filter
    equal: Equal
    membership: Membership
    range: Range
    def __init__(self, conjunction: _Optional[_Union[FilterList, _Mapping]] = ..., disjunction: _Optional[_Union[FilterList, _Mapping]] = ..., negation: _Optional[_Union[Filter, _Mapping]] = ..., equal: _Optional[_Union[Equal, _Mapping]] = ..., membership: _Optional[_Union[Membership, _Mapping]] = ..., range: _Optional[_Union[Range, _Mapping]] = ...) -> None: ...

class FilterList(_message.Message):
    __slots__ = ("filters",)
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    def __init__(self, filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ...) -> None: ...

class Equal(_message.Message):
    __slots__ = ("attribute", "value")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    value: Value
    def __init__(self, attribute: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class Membership(_message.Message):
    __slots__ = ("attribute", "values")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, attribute: _Optional[str] = ..., values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("attribute", "low", "high")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    low: Value
    high: Value
    def __init__(self, attribute: _Optional[str] = ..., low: _Optional[_Union[Value, _Mapping]] = ..., high: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("integer", "number", "text", "flag")
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    integer: int
    number: float
    text: str
    flag: bool
    def __init__(self, integer: _Optional[int] = ..., number: _Optional[float] = ..., text: _Optional[str] = ..., flag: _Optional[bool] = ...) -> None: ...

class RetrieveRequest(_message.Message):
    __slots__ = ("user", "history", "features", "vector", "k", "exclude_seen", "excluded", "filter", "history_times", "history_features", "time")
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Column
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...
    class HistoryFeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Column
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...
    USER_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TIMES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FEATURES_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    user: Id
    history: Ids
    features: _containers.MessageMap[str, Column]
    vector: _containers.RepeatedScalarFieldContainer[float]
    k: int
    exclude_seen: bool
    excluded: Ids
    filter: Filter
    history_times: _containers.RepeatedScalarFieldContainer[int]
    history_features: _containers.MessageMap[str, Column]
    time: int
    def __init__(self, user: _Optional[_Union[Id, _Mapping]] = ..., history: _Optional[_Union[Ids, _Mapping]] = ..., features: _Optional[_Mapping[str, Column]] = ..., vector: _Optional[_Iterable[float]] = ..., k: _Optional[int] = ..., exclude_seen: _Optional[bool] = ..., excluded: _Optional[_Union[Ids, _Mapping]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., history_times: _Optional[_Iterable[int]] = ..., history_features: _Optional[_Mapping[str, Column]] = ..., time: _Optional[int] = ...) -> None: ...

class RetrieveResponse(_message.Message):
    __slots__ = ("items", "scores", "sources", "source_names", "bundle_id", "attribution_token", "fallback", "user_known", "unknown_history_ids", "unknown_excluded_ids", "unread_history_ids")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_NAMES_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    USER_KNOWN_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_HISTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_EXCLUDED_IDS_FIELD_NUMBER: _ClassVar[int]
    UNREAD_HISTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    items: Ids
    scores: _containers.RepeatedScalarFieldContainer[float]
    sources: _containers.RepeatedScalarFieldContainer[int]
    source_names: _containers.RepeatedScalarFieldContainer[str]
    bundle_id: str
    attribution_token: bytes
    fallback: Fallback
    user_known: bool
    unknown_history_ids: int
    unknown_excluded_ids: int
    unread_history_ids: int
    def __init__(self, items: _Optional[_Union[Ids, _Mapping]] = ..., scores: _Optional[_Iterable[float]] = ..., sources: _Optional[_Iterable[int]] = ..., source_names: _Optional[_Iterable[str]] = ..., bundle_id: _Optional[str] = ..., attribution_token: _Optional[bytes] = ..., fallback: _Optional[_Union[Fallback, _Mapping]] = ..., user_known: _Optional[bool] = ..., unknown_history_ids: _Optional[int] = ..., unknown_excluded_ids: _Optional[int] = ..., unread_history_ids: _Optional[int] = ...) -> None: ...

class Fallback(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: FallbackReason
    detail: str
    def __init__(self, reason: _Optional[_Union[FallbackReason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("user", "items", "columns", "history", "history_times", "history_features", "time")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Column
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...
    class HistoryFeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Column
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...
    USER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TIMES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FEATURES_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    user: Id
    items: Ids
    columns: _containers.MessageMap[str, Column]
    history: Ids
    history_times: _containers.RepeatedScalarFieldContainer[int]
    history_features: _containers.MessageMap[str, Column]
    time: int
    def __init__(self, user: _Optional[_Union[Id, _Mapping]] = ..., items: _Optional[_Union[Ids, _Mapping]] = ..., columns: _Optional[_Mapping[str, Column]] = ..., history: _Optional[_Union[Ids, _Mapping]] = ..., history_times: _Optional[_Iterable[int]] = ..., history_features: _Optional[_Mapping[str, Column]] = ..., time: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "tasks", "bundle_id", "attribution_token", "user_known", "unknown_item_ids", "unknown_history_ids", "unread_history_ids")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    USER_KNOWN_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_HISTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    UNREAD_HISTORY_IDS_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    bundle_id: str
    attribution_token: bytes
    user_known: bool
    unknown_item_ids: int
    unknown_history_ids: int
    unread_history_ids: int
    def __init__(self, scores: _Optional[_Iterable[float]] = ..., tasks: _Optional[_Iterable[str]] = ..., bundle_id: _Optional[str] = ..., attribution_token: _Optional[bytes] = ..., user_known: _Optional[bool] = ..., unknown_item_ids: _Optional[int] = ..., unknown_history_ids: _Optional[int] = ..., unread_history_ids: _Optional[int] = ...) -> None: ...

class GetBundleRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetBundleResponse(_message.Message):
    __slots__ = ("bundle_id", "components", "retrieval", "ranking")
    class ComponentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    bundle_id: str
    components: _containers.ScalarMap[str, str]
    retrieval: Retrieval
    ranking: Ranking
    def __init__(self, bundle_id: _Optional[str] = ..., components: _Optional[_Mapping[str, str]] = ..., retrieval: _Optional[_Union[Retrieval, _Mapping]] = ..., ranking: _Optional[_Union[Ranking, _Mapping]] = ...) -> None: ...

class Catalogue(_message.Message):
    __slots__ = ("num_users", "num_items", "user_id_type", "item_id_type")
    NUM_USERS_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_TYPE_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_TYPE_FIELD_NUMBER: _ClassVar[int]
    num_users: int
    num_items: int
    user_id_type: IdType
    item_id_type: IdType
    def __init__(self, num_users: _Optional[int] = ..., num_items: _Optional[int] = ..., user_id_type: _Optional[_Union[IdType, str]] = ..., item_id_type: _Optional[_Union[IdType, str]] = ...) -> None: ...

class Retrieval(_message.Message):
    __slots__ = ("model", "catalogue", "embedding_dim", "features", "attributes", "history_features", "history_times")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FEATURES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TIMES_FIELD_NUMBER: _ClassVar[int]
    model: str
    catalogue: Catalogue
    embedding_dim: int
    features: _containers.RepeatedScalarFieldContainer[str]
    attributes: _containers.RepeatedScalarFieldContainer[str]
    history_features: _containers.RepeatedScalarFieldContainer[str]
    history_times: bool
    def __init__(self, model: _Optional[str] = ..., catalogue: _Optional[_Union[Catalogue, _Mapping]] = ..., embedding_dim: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., attributes: _Optional[_Iterable[str]] = ..., history_features: _Optional[_Iterable[str]] = ..., history_times: _Optional[bool] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("model", "catalogue", "features", "tasks", "history_features", "history_times")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FEATURES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TIMES_FIELD_NUMBER: _ClassVar[int]
    model: str
    catalogue: Catalogue
    features: _containers.RepeatedScalarFieldContainer[str]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    history_features: _containers.RepeatedScalarFieldContainer[str]
    history_times: bool
    def __init__(self, model: _Optional[str] = ..., catalogue: _Optional[_Union[Catalogue, _Mapping]] = ..., features: _Optional[_Iterable[str]] = ..., tasks: _Optional[_Iterable[str]] = ..., history_features: _Optional[_Iterable[str]] = ..., history_times: _Optional[bool] = ...) -> None: ...
