"""Settings of earlier versions."""

from speechllm_pl.core.moved_settings import where_they_are_now


def test_a_moved_setting_stands_in_its_group_and_others_stay() -> None:
    former = {"lora_r": 8, "stride": 3}
    assert where_they_are_now(former) == {"lora_r": 8, "bridge": {"stride": 3}}
    assert former == {"lora_r": 8, "stride": 3}


def test_present_settings_stay() -> None:
    present = {"bridge": {"class_path": "ProjectorConfig", "init_args": {"stride": 3}}, "llm": "x"}
    assert where_they_are_now(present) == present
