"""Reading pixels out of vision-language models (PVP / PAE-LaMM, 2024): reconstruction and referring segmentation."""
