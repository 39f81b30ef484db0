"""What a deploy defines: environments, apps, functions and classes.

A function keeps the definition it is created with as a draft until its
app is published; publishing retires the containers of the definition before.
"""

import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.fakes.modal.materials import IMAGE_BUILDER_VERSION
from tests.fakes.modal.runner import Runner
from tests.fakes.modal.state import (
    DEFAULT_ENVIRONMENT,
    App,
    Container,
    Definition,
    Function,
    State,
    Version,
    new_id,
)
from tests.fakes.modal.web import WebServer

Caller = Container | None


class AppHandlers:
    """Environments, apps and their history, logs and containers as the CLI asks for them."""

    def __init__(self, state: State, runner: Runner, *, max_crons: int) -> None:
        self._state = state
        self._runner = runner
        self._max_crons = max_crons

    async def ClientHello(self, _: Empty, __: Caller) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(image_builder_version=IMAGE_BUILDER_VERSION)

    async def AuthTokenGet(self, _: Any, __: Caller) -> api_pb2.AuthTokenGetResponse:
        # A JWT whose only claim is that it holds for a day: header {"alg":"none"}, then the expiry.
        claims = urlsafe_b64encode(b'{"exp":%d}' % int(time.time() + 86400)).rstrip(b"=").decode()
        return api_pb2.AuthTokenGetResponse(token=f"eyJhbGciOiJub25lIn0.{claims}.fake")

    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, _: Caller
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        name = request.deployment_name or DEFAULT_ENVIRONMENT
        settings = api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION)
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=self._state.environments.setdefault(name, new_id("en")),
            metadata=api_pb2.EnvironmentMetadata(name=name, settings=settings),
        )

    async def EnvironmentList(self, _: Empty, __: Caller) -> api_pb2.EnvironmentListResponse:
        names = {DEFAULT_ENVIRONMENT: "", **self._state.environments}
        return api_pb2.EnvironmentListResponse(
            items=[api_pb2.EnvironmentListItem(name=name, default=name == DEFAULT_ENVIRONMENT) for name in names]
        )

    async def AppCreate(self, request: api_pb2.AppCreateRequest, _: Caller) -> api_pb2.AppCreateResponse:
        app = self._create(request.description, request.environment_name, request.app_state)
        app.tags = dict(request.tags)
        page = f"http://127.0.0.1/apps/{app.app_id}"
        return api_pb2.AppCreateResponse(app_id=app.app_id, app_page_url=page, app_logs_url=f"{page}/logs")

    async def AppGetOrCreate(self, request: api_pb2.AppGetOrCreateRequest, _: Caller) -> api_pb2.AppGetOrCreateResponse:
        app = self._state.deployed_app(request.app_name, request.environment_name)
        if app is None:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found")
            app = self._create(request.app_name, request.environment_name, api_pb2.APP_STATE_DEPLOYED)
        return api_pb2.AppGetOrCreateResponse(
            app_id=app.app_id,
            handle_metadata=api_pb2.AppHandleMetadata(
                description=app.name, app_id=app.app_id, environment_name=app.environment, lifecycle=lifecycle(app)
            ),
        )

    def _create(self, name: str, environment: str, app_state: int) -> App:
        app = App(new_id("ap"), name, environment or DEFAULT_ENVIRONMENT, app_state)
        self._state.apps[app.app_id] = app
        return app

    async def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest, _: Caller
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        app = self._state.deployed_app(request.name, environment)
        if app is None:
            return api_pb2.AppGetByDeploymentNameResponse(environment_name=environment)
        return api_pb2.AppGetByDeploymentNameResponse(
            app_id=app.app_id, environment_name=environment, lifecycle=lifecycle(app)
        )

    async def AppGetLifecycle(self, request: Any, _: Caller) -> api_pb2.AppGetLifecycleResponse:
        return api_pb2.AppGetLifecycleResponse(lifecycle=lifecycle(self._app(request.app_id)))

    async def AppGetLayout(self, request: api_pb2.AppGetLayoutRequest, _: Caller) -> api_pb2.AppGetLayoutResponse:
        return api_pb2.AppGetLayoutResponse(app_layout=self._runner.layout(self._app(request.app_id)))

    async def AppHeartbeat(self, _: Any, __: Caller) -> Empty:
        return Empty()

    async def AppSetTags(self, request: api_pb2.AppSetTagsRequest, _: Caller) -> Empty:
        self._app(request.app_id).tags = dict(request.tags)
        return Empty()

    async def AppGetTags(self, request: api_pb2.AppGetTagsRequest, _: Caller) -> api_pb2.AppGetTagsResponse:
        return api_pb2.AppGetTagsResponse(tags=self._app(request.app_id).tags)

    async def AppPublish(self, request: api_pb2.AppPublishRequest, _: Caller) -> api_pb2.AppPublishResponse:
        app = self._app(request.app_id)
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            self._refuse_crons(app, list(request.function_ids.values()))
        app.state = request.app_state
        app.name = request.name or app.name
        app.tags = dict(request.tags)
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        definitions = {}
        for function_id in app.function_ids.values():
            function = self._state.functions[function_id]
            assert function.draft is not None
            definitions[function_id] = function.draft
        return api_pb2.AppPublishResponse(
            url=f"http://127.0.0.1/apps/{app.app_id}",
            deployed_at=self._publish(app, definitions, tag=request.deployment_tag),
        )

    def _refuse_crons(self, app: App, function_ids: list[str]) -> None:
        """Refuse a deployment with which the workspace, all environments together, would have too many schedules."""
        deployed = [each for each in self._state.apps.values() if each.is_deployed and each is not app]
        ids = [*function_ids, *(each for other in deployed for each in other.function_ids.values())]
        functions = [self._state.functions[each].draft for each in ids]
        crons = sum(each is not None and each.function.HasField("schedule") for each in functions)
        if crons > self._max_crons:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED, f"the workspace would have {crons} scheduled functions of {self._max_crons}"
            )

    def _publish(self, app: App, definitions: dict[str, Definition], *, tag: str = "", rollback_of: int = 0) -> float:
        for function_id, definition in definitions.items():
            function = self._state.functions[function_id]
            function.definition = definition
            function.autoscaler.CopyFrom(definition.function.autoscaler_settings)
        self._runner.retire_outdated(app)
        number, now = len(app.versions) + 1, time.time()
        app.versions.append(
            Version(number, now, app.function_ids, app.class_ids, definitions, tag=tag, rollback_of=rollback_of)
        )
        return now

    async def AppDeploymentHistory(self, request: Any, _: Caller) -> api_pb2.AppDeploymentHistoryResponse:
        app = self._app(request.app_id)
        return api_pb2.AppDeploymentHistoryResponse(
            app_deployment_histories=[
                api_pb2.AppDeploymentHistory(
                    app_id=app.app_id,
                    version=version.number,
                    deployed_at=version.deployed_at,
                    deployed_by="fake-modal",
                    tag=version.tag,
                    rollback_version=version.rollback_of,
                )
                for version in app.versions
            ],
            production_app_version=len(app.versions),
        )

    async def AppRollback(self, request: api_pb2.AppRollbackRequest, _: Caller) -> api_pb2.AppRollbackResponse:
        app = self._app(request.app_id)
        # A negative number counts back from the version in production, as `modal app rollback` without one sends.
        number = request.version if request.version > 0 else len(app.versions) + request.version
        if not 1 <= number <= len(app.versions):
            raise GRPCError(Status.NOT_FOUND, f"App has no version {number}")
        version = app.versions[number - 1]
        app.function_ids, app.class_ids = version.function_ids, version.class_ids
        deployed_at = self._publish(app, version.definitions, rollback_of=number)
        return api_pb2.AppRollbackResponse(url=f"http://127.0.0.1/apps/{app.app_id}", deployed_at=deployed_at)

    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest, _: Caller) -> Empty:
        app = self._app(request.app_id)
        if app.state in (api_pb2.APP_STATE_EPHEMERAL, api_pb2.APP_STATE_INITIALIZING):
            self._runner.stop_app(app)
        return Empty()

    async def AppStop(self, request: api_pb2.AppStopRequest, _: Caller) -> Empty:
        self._runner.stop_app(self._app(request.app_id))
        return Empty()

    async def AppList(self, request: api_pb2.AppListRequest, _: Caller) -> api_pb2.AppListResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        return api_pb2.AppListResponse(
            apps=[
                api_pb2.AppListResponse.AppListItem(
                    app_id=app.app_id,
                    description=app.name,
                    name=app.name,
                    state=app.state,
                    created_at=app.created_at,
                    stopped_at=app.stopped_at,
                    n_running_tasks=len(self._runner.live_containers(app)),
                )
                for app in self._state.apps.values()
                if app.environment == environment
            ]
        )

    async def TaskList(self, request: api_pb2.TaskListRequest, _: Caller) -> api_pb2.TaskListResponse:
        apps = [self._app(request.app_id)] if request.app_id else list(self._state.apps.values())
        return api_pb2.TaskListResponse(
            tasks=[
                api_pb2.TaskStats(
                    task_id=container.task_id,
                    app_id=app.app_id,
                    app_description=app.name,
                    started_at=container.created_at,
                    enqueued_at=container.created_at,
                )
                for app in apps
                for container in self._runner.live_containers(app)
            ]
        )

    async def AppGetLogs(self, request: api_pb2.AppGetLogsRequest, _: Caller) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        app = self._app(request.app_id)
        position = int(request.last_entry_id or 0)
        while await app.logged.until(lambda seen=position: len(app.logs) > seen or app.is_done, request.timeout):
            for batch in app.logs[position:]:
                yield batch
            position = len(app.logs)
            if app.is_done:
                yield api_pb2.TaskLogsBatch(app_done=True)
                return

    async def AppFetchLogs(self, request: api_pb2.AppFetchLogsRequest, _: Caller) -> api_pb2.AppFetchLogsResponse:
        return api_pb2.AppFetchLogsResponse(batches=self._app(request.app_id).logs)

    def _app(self, app_id: str) -> App:
        if app_id not in self._state.apps:
            raise GRPCError(Status.NOT_FOUND, f"App '{app_id}' not found")
        return self._state.apps[app_id]


def lifecycle(app: App) -> api_pb2.AppLifecycle:
    """An app's state and times as the CLI shows them."""
    return api_pb2.AppLifecycle(
        app_state=app.state,
        created_at=app.created_at,
        deployed_at=app.versions[-1].deployed_at if app.versions else 0.0,
        version=len(app.versions),
        stopped_at=app.stopped_at,
    )


class FunctionHandlers:
    """Functions and classes: made by a deploy, found by name, bound to parameters and options."""

    def __init__(self, state: State, runner: Runner, web_server: WebServer) -> None:
        self._state = state
        self._runner = runner
        self._web = web_server

    async def FunctionPrecreate(
        self, request: api_pb2.FunctionPrecreateRequest, _: Caller
    ) -> api_pb2.FunctionPrecreateResponse:
        app = self._state.apps[request.app_id]
        function = self._state.functions.get(request.existing_function_id)
        if function is None:
            function = Function(new_id("fu"), app, request.function_name, api_pb2.FunctionHandleMetadata())
            self._state.functions[function.function_id] = function
        if request.webhook_config.type and not function.web_port:
            function.web_port = await self._web.open_for(function)
        function.metadata = api_pb2.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            web_url=f"http://127.0.0.1:{function.web_port}" if function.web_port else "",
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
            app_id=app.app_id,
            definition_id=new_id("de"),
            method_handle_metadata={
                name: api_pb2.FunctionHandleMetadata(
                    function_name=method.function_name,
                    function_type=method.function_type,
                    is_method=True,
                    use_method_name=name,
                    function_schema=method.function_schema,
                    supported_input_formats=method.supported_input_formats,
                    supported_output_formats=method.supported_output_formats,
                    app_id=app.app_id,
                )
                for name, method in request.method_definitions.items()
            },
        )
        return api_pb2.FunctionPrecreateResponse(function_id=function.function_id, handle_metadata=function.metadata)

    async def FunctionCreate(self, request: api_pb2.FunctionCreateRequest, _: Caller) -> api_pb2.FunctionCreateResponse:
        function = self._state.functions[request.existing_function_id]
        if request.HasField("function_data"):
            ranked = tuple(each.function for each in request.function_data.ranked_functions)
            data = request.function_data
        else:
            ranked = (request.function,)
            data = _data(request.function)
        for each in (*ranked, data):
            each.web_url = function.metadata.web_url
        function.draft = Definition(ranked, data)
        function.metadata.class_parameter_info.CopyFrom(ranked[0].class_parameter_info)
        return api_pb2.FunctionCreateResponse(
            function_id=function.function_id,
            function=ranked[0],
            function_data=data,
            handle_metadata=function.metadata,
        )

    async def ClassCreate(self, request: api_pb2.ClassCreateRequest, _: Caller) -> api_pb2.ClassCreateResponse:
        class_id = request.existing_class_id or new_id("cs")
        self._state.classes[class_id] = request.app_id
        return api_pb2.ClassCreateResponse(class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata())

    async def ClassGet(self, request: api_pb2.ClassGetRequest, _: Caller) -> api_pb2.ClassGetResponse:
        app = self._deployed(request.app_name, request.environment_name)
        if request.object_tag not in app.class_ids:
            raise GRPCError(Status.NOT_FOUND, f"App has no class '{request.object_tag}'")
        return api_pb2.ClassGetResponse(
            class_id=app.class_ids[request.object_tag], handle_metadata=api_pb2.ClassHandleMetadata()
        )

    async def FunctionGet(self, request: api_pb2.FunctionGetRequest, _: Caller) -> api_pb2.FunctionGetResponse:
        app = self._deployed(request.app_name, request.environment_name)
        function = self._state.function_named(app, request.object_tag)
        if function is None:
            raise GRPCError(Status.NOT_FOUND, f"App has no function '{request.object_tag}'")
        return api_pb2.FunctionGetResponse(
            function_id=function.function_id, handle_metadata=function.metadata, function=function.effective().data
        )

    async def FunctionGetById(
        self, request: api_pb2.FunctionGetByIdRequest, _: Caller
    ) -> api_pb2.FunctionGetByIdResponse:
        function = self._state.functions.get(request.function_id)
        if function is None:
            raise GRPCError(Status.NOT_FOUND, f"Function '{request.function_id}' not found")
        return api_pb2.FunctionGetByIdResponse(function=function.effective().data, handle_metadata=function.metadata)

    async def FunctionBindParams(
        self, request: api_pb2.FunctionBindParamsRequest, _: Caller
    ) -> api_pb2.FunctionBindParamsResponse:
        base = self._state.functions[request.function_id]
        for function in self._state.functions.values():
            if (function.base, function.serialized_params) == (base, request.serialized_params) and (
                function.options == request.function_options
            ):
                break
        else:
            function = Function(
                new_id("fu"),
                base.app,
                base.tag,
                base.metadata,
                base=base,
                serialized_params=request.serialized_params,
                options=request.function_options,
            )
            function.autoscaler.CopyFrom(base.autoscaler)
            self._state.functions[function.function_id] = function
        return api_pb2.FunctionBindParamsResponse(
            bound_function_id=function.function_id, handle_metadata=function.metadata
        )

    async def FunctionUpdateSchedulingParams(
        self, request: api_pb2.FunctionUpdateSchedulingParamsRequest, _: Caller
    ) -> api_pb2.FunctionUpdateSchedulingParamsResponse:
        function = self._state.functions[request.function_id]
        function.autoscaler.MergeFrom(request.settings)
        self._runner.scale(function)
        return api_pb2.FunctionUpdateSchedulingParamsResponse(current_settings=function.autoscaler)

    async def FunctionGetSchedulingParams(
        self, request: api_pb2.FunctionGetSchedulingParamsRequest, _: Caller
    ) -> api_pb2.FunctionGetSchedulingParamsResponse:
        settings = self._state.functions[request.function_id].autoscaler
        return api_pb2.FunctionGetSchedulingParamsResponse(
            autoscaler_configuration=api_pb2.AutoscalerConfiguration(settings=settings)
        )

    async def FunctionGetCurrentStats(self, request: Any, _: Caller) -> api_pb2.FunctionStats:
        function = self._state.functions[request.function_id]
        live = [container for container in function.containers if not container.is_ended]
        return api_pb2.FunctionStats(
            backlog=len(function.queue),
            num_total_tasks=len(live),
            num_running_inputs=sum(len(container.running) for container in live),
        )

    def _deployed(self, name: str, environment: str) -> App:
        app = self._state.deployed_app(name, environment)
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"App '{name}' not found in environment '{environment or 'main'}'")
        return app


def _data(function: api_pb2.Function) -> api_pb2.FunctionData:
    """What the server says of a function without a GPU fallback order: the fields that both messages have."""
    data = api_pb2.FunctionData(ranked_functions=[api_pb2.FunctionData.RankedFunction(rank=0, function=function)])
    for descriptor, value in function.ListFields():
        name = descriptor.name
        if name not in data.DESCRIPTOR.fields_by_name:
            continue
        if name in ("method_definitions", "experimental_options"):
            getattr(data, name).MergeFrom(value)
        elif descriptor.is_repeated:
            getattr(data, name).extend(value)
        elif descriptor.message_type is not None:
            getattr(data, name).CopyFrom(value)
        else:
            setattr(data, name, value)
    return data
